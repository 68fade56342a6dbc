//! A journal's file: records one after another, each with its checksum.
//!
//! A frame is two bytes by which it is found again after damage, a length, eight bytes of a BLAKE3 hash over length and
//! content, and the content. What is at the end and not whole was never acknowledged: a torn write, left out. What is not
//! whole in between was damaged: it is skipped and counted, and the rest is read. Frames that others lean on, which are
//! few, are there twice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::aggregate::JournalId;
use crate::proto::durable::{Durable, Record};
use crate::storage::StorageError;

const MAGIC: [u8; 2] = [0xA7, 0x5C];
const HEAD: usize = MAGIC.len() + size_of::<u32>() + HASH;
const HASH: usize = 8;
/// How much is read at a time.
const CHUNK: usize = 1024 * 1024;

/// What a journal's file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    pub version: u8,
    pub node: NodeId,
    pub journal: JournalId,
    /// The account's, should the node commit samples.
    pub account: AccountId,
}

/// What was found damaged in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Stretches of the file that could not be read.
    pub stretches: u64,
    /// Own samples that were acknowledged and are gone.
    pub lost_samples: u64,
}

/// The file, open for more.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    beginning: Beginning,
    /// What of the file is whole and synced.
    length: u64,
    /// The length beyond which it is written anew.
    bloated: u64,
    /// Whether the disk failed in a way that leaves in doubt what the file holds.
    in_doubt: bool,
    buffer: Vec<u8>,
}

impl Log {
    /// Opens the file, or makes it with this beginning if there is none.
    pub fn open(path: &Path, fresh: Beginning) -> Result<(Self, Durable, Damage), StorageError> {
        let failed = |error| StorageError::Io { path: path.to_owned(), error };
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let durable = Durable::new(fresh.journal, Some(fresh.account));
                let (file, length, named) = write_anew(path, &fresh, &durable).map_err(failed)?;
                named.map_err(failed)?;
                let log = Self::new(path, file, fresh, (length, length));
                return Ok((log, durable, Damage::default()));
            }
            Err(error) => return Err(failed(error)),
        };
        let damaged = |detail| StorageError::Damaged { path: path.to_owned(), detail };
        let mut frames = Frames::new(file);
        let first = frames.next().map_err(failed)?.unwrap_or_default().to_vec();
        let Ok(beginning) = codec::decode::<Beginning>(&first) else {
            return Err(damaged(
                "its beginning cannot be read; restore it from a backup, or move it away to begin anew",
            ));
        };
        if beginning.version != codec::VERSION {
            return Err(damaged("it was written by another version of tussock; run that one"));
        }
        if beginning.node != fresh.node {
            return Err(damaged("it is another node's; restore the identity.key that belongs to it, or move it away"));
        }
        let mut durable = Durable::new(beginning.journal, Some(beginning.account));
        let mut unreadable = 0;
        while let Some(content) = frames.next().map_err(failed)? {
            // The beginning is there twice.
            if content != first {
                match codec::decode(content) {
                    Ok(record) => durable.apply(&record),
                    Err(_) => unreadable += 1,
                }
            }
        }
        let damage = Damage { stretches: frames.stretches + unreadable, lost_samples: durable.outbox.give_up_lost() };
        let (torn, whole) = (frames.torn(), frames.whole);
        let mut log = Self::new(path, frames.file, beginning, (whole, needed(&durable)));
        if damage != Damage::default() {
            fs::copy(path, path.with_extension("damaged")).map_err(failed)?;
        }
        if torn > 0 || damage != Damage::default() {
            // If it was not a torn write but damage, what was there was sent: its sequences are not used again.
            durable.outbox.skip(torn.div_ceil(HEAD as u64));
            // The disk may be full, which is why the write was torn: what is there is there, and nothing goes behind it.
            log.in_doubt = log.rewrite(&durable).is_err();
        }
        Ok((log, durable, damage))
    }

    fn new(path: &Path, file: File, beginning: Beginning, (length, needed): (u64, u64)) -> Self {
        let (path, buffer) = (path.to_owned(), Vec::new());
        Self { path, file, beginning, length, bloated: bloated(needed), in_doubt: false, buffer }
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.length
    }

    /// Keeps records: on the disk when this returns. After an error none of them is.
    pub fn append<'r>(&mut self, records: impl Iterator<Item = &'r Record>) -> io::Result<()> {
        if self.in_doubt {
            return Err(io::Error::other("it is in doubt what the file holds"));
        }
        self.buffer.clear();
        records.for_each(|record| put_record(record, &mut self.buffer));
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(&self.buffer)?;
        // After a failed sync nobody knows what is on the disk: the file is given up.
        self.in_doubt = true;
        self.file.sync_data()?;
        self.in_doubt = false;
        self.length += self.buffer.len() as u64;
        Ok(())
    }

    /// After an error: makes the file what it was before, or a new one, and sees whether it takes a record again.
    pub fn recover(&mut self, durable: &Durable) -> io::Result<()> {
        if self.in_doubt || self.file.set_len(self.length).is_err() {
            return self.rewrite(durable);
        }
        self.append(std::iter::once(&Record::Reserve(durable.reserved)))
    }

    /// Whether so much of the file is history that it should be written anew.
    pub fn is_bloated(&self) -> bool {
        self.length > self.bloated
    }

    /// Replaces the file by what it adds up to. After an error the file is as it was, or in doubt.
    pub fn rewrite(&mut self, durable: &Durable) -> io::Result<()> {
        // If it fails, not for every record anew.
        self.bloated = self.length + Limits::JOURNAL_SLACK;
        let (file, length, named) = write_anew(&self.path, &self.beginning, durable)?;
        (self.file, self.length, self.bloated) = (file, length, bloated(length));
        self.in_doubt = named.is_err();
        named
    }
}

/// How long a file may become that takes no more than this.
fn bloated(needed: u64) -> u64 {
    2 * needed + Limits::JOURNAL_SLACK
}

/// How many bytes it takes to keep this.
fn needed(durable: &Durable) -> u64 {
    let mut buffer = Vec::new();
    let bytes = durable.records().map(|record| {
        buffer.clear();
        put_record(&record, &mut buffer);
        buffer.len() as u64
    });
    bytes.sum()
}

/// The new file in the place of the old, its length, and whether the disk will remember that it is there.
fn write_anew(path: &Path, beginning: &Beginning, durable: &Durable) -> io::Result<(File, u64, io::Result<()>)> {
    let fresh = path.with_extension("new");
    let replaced = File::open(path.parent().unwrap_or(Path::new("."))).and_then(|directory| {
        let (file, length) = write(&fresh, beginning, durable)?;
        fs::rename(&fresh, path)?;
        Ok((file, length, directory.sync_all()))
    });
    if replaced.is_err() {
        // The disk may be full: half of a file is not what it is needed for.
        let _ = fs::remove_file(&fresh);
    }
    replaced
}

fn write(path: &Path, beginning: &Beginning, durable: &Durable) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let (mut buffer, mut length) = (Vec::new(), 0);
    let mut content = Vec::new();
    codec::encode_into(beginning, &mut content);
    put_frame(&content, &mut buffer);
    put_frame(&content, &mut buffer);
    let mut records = durable.records().peekable();
    loop {
        while buffer.len() < CHUNK
            && let Some(record) = records.next()
        {
            put_record(&record, &mut buffer);
        }
        file.write_all(&buffer)?;
        length += buffer.len() as u64;
        buffer.clear();
        if records.peek().is_none() {
            break;
        }
    }
    file.sync_all()?;
    Ok((file, length))
}

fn put_record(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    codec::encode_into(record, out);
    finish_frame(start, out);
    if record.is_leaned_on() {
        out.extend_from_within(start..);
    }
}

fn put_frame(content: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    out.extend_from_slice(content);
    finish_frame(start, out);
}

fn finish_frame(start: usize, out: &mut [u8]) {
    let (head, content) = out[start..].split_at_mut(HEAD);
    let length = (content.len() as u32).to_le_bytes();
    head[..2].copy_from_slice(&MAGIC);
    head[2..6].copy_from_slice(&length);
    head[6..].copy_from_slice(&checksum(&length, content));
}

fn checksum(length: &[u8], content: &[u8]) -> [u8; HASH] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(length).update(content);
    let mut sum = [0; HASH];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..HASH]);
    sum
}

/// Reads the whole frames of a file, and finds its way over what is not whole.
struct Frames {
    file: File,
    buffer: Vec<u8>,
    /// Where in the buffer the next frame begins.
    at: usize,
    /// The place in the file where the buffer begins.
    base: u64,
    at_end: bool,
    /// Whether bytes were skipped since the last whole frame.
    skipping: bool,
    /// Where the last whole frame ends.
    whole: u64,
    stretches: u64,
}

impl Frames {
    fn new(file: File) -> Self {
        Self { file, buffer: Vec::new(), at: 0, base: 0, at_end: false, skipping: false, whole: 0, stretches: 0 }
    }

    /// The next frame's content, if there is one more.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            self.fill(HEAD)?;
            if self.buffer.len() - self.at < HEAD {
                return Ok(None);
            }
            let head = &self.buffer[self.at..self.at + HEAD];
            let length = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
            if head[..2] == MAGIC && length <= Limits::FRAME_BYTES {
                self.fill(HEAD + length)?;
                let end = self.at + HEAD + length;
                if let Some(frame) = self.buffer.get(self.at..end) {
                    let (head, content) = frame.split_at(HEAD);
                    if head[6..] == checksum(&head[2..6], content) {
                        self.stretches += u64::from(std::mem::take(&mut self.skipping));
                        self.at = end;
                        self.whole = self.base + end as u64;
                        return Ok(Some(&self.buffer[end - length..end]));
                    }
                }
            }
            self.skipping = true;
            self.at += 1;
        }
    }

    /// How many bytes at the end are not whole.
    fn torn(&self) -> u64 {
        self.base + self.buffer.len() as u64 - self.whole
    }

    /// Reads on until so many bytes are there, or the file ends.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while self.buffer.len() - self.at < wanted && !self.at_end {
            self.buffer.drain(..self.at);
            self.base += self.at as u64;
            self.at = 0;
            let before = self.buffer.len();
            self.buffer.resize(before + CHUNK, 0);
            let read = self.file.read(&mut self.buffer[before..])?;
            self.buffer.truncate(before + read);
            self.at_end = read == 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::proto::sample::{Priority, Sample};
    use tempfile::TempDir;

    const FRESH: Beginning = Beginning {
        version: codec::VERSION,
        node: NodeId::from_bytes([1; 32]),
        journal: 7,
        account: AccountId([9; 16]),
    };

    fn sample(sequence: u64) -> Record {
        let metrics = vec![("temperature".to_owned(), sequence as f64)];
        Record::Sample(Arc::new(Sample { sequence, priority: Priority::Normal, metrics }))
    }

    /// A journal of ten samples, each appended on its own.
    fn ten(directory: &TempDir) -> (PathBuf, Durable) {
        let path = directory.path().join("log");
        let (mut log, mut durable, damage) = Log::open(&path, FRESH).unwrap();
        assert_eq!(damage, Damage::default());
        let bind = Record::Bind { from: 1, account: FRESH.account };
        for record in std::iter::once(bind).chain((1..=10).map(sample)) {
            log.append(std::iter::once(&record)).unwrap();
            durable.apply(&record);
        }
        (path, durable)
    }

    #[test]
    fn it_is_written_anew_in_time_however_often_its_process_starts_again() {
        let directory = TempDir::new().unwrap();
        let (path, _) = ten(&directory);
        let mut lives = 0;
        let length = loop {
            let (mut log, ..) = Log::open(&path, FRESH).unwrap();
            lives += 1;
            log.append((0..20_000).map(Record::Reserve).collect::<Vec<_>>().iter()).unwrap();
            if log.is_bloated() {
                break log.bytes();
            }
            assert!(lives < 100, "{} bytes for ten samples", log.bytes());
        };
        assert!(lives > 2 && length < Limits::JOURNAL_SLACK + 1024 * 1024, "{lives} lives, {length} bytes");
    }

    #[test]
    fn what_cannot_be_written_anew_leaves_nothing_behind_and_is_not_tried_for_every_record() {
        let directory = TempDir::new().unwrap();
        let (path, durable) = ten(&directory);
        let (mut log, ..) = Log::open(&path, FRESH).unwrap();
        while !log.is_bloated() {
            log.append((0..100_000).map(Record::Reserve).collect::<Vec<_>>().iter()).unwrap();
        }
        // No file takes the place of a directory.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(log.rewrite(&durable).is_err());
        assert!(!path.with_extension("new").exists());
        assert!(!log.is_bloated());
        log.append(std::iter::once(&sample(11))).unwrap();
    }

    fn reopened(path: &Path) -> (Durable, Damage) {
        let (_, durable, damage) = Log::open(path, FRESH).unwrap();
        (durable, damage)
    }

    #[test]
    fn what_was_appended_is_there_again_also_after_it_was_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, durable) = ten(&directory);
        assert_eq!(reopened(&path), (durable.clone(), Damage::default()));
        let (mut log, ..) = Log::open(&path, FRESH).unwrap();
        log.rewrite(&durable).unwrap();
        log.append(std::iter::once(&sample(11))).unwrap();
        drop(log);
        let (after, damage) = reopened(&path);
        assert_eq!(
            (after.outbox.depth(), after.account.as_ref().map(|account| account.id), damage),
            (11, Some(FRESH.account), Damage::default())
        );
    }

    #[test]
    fn a_write_torn_anywhere_costs_only_itself_and_no_sequence_is_used_twice() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = ten(&directory);
        let whole = fs::read(&path).unwrap();
        let frame = {
            let mut out = Vec::new();
            put_record(&sample(10), &mut out);
            out.len()
        };
        // The last five may have been one batch.
        for cut in 1..5 * frame {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (durable, damage) = reopened(&path);
            let kept = 10 - cut.div_ceil(frame);
            assert_eq!((durable.outbox.depth(), damage), (kept, Damage::default()), "cut {cut}");
            // Of what is gone without a trace nothing was acknowledged, nor sent.
            let next = kept as u64 + 1 + u64::from(!cut.is_multiple_of(frame));
            assert!(durable.outbox.next_sequence() >= next, "cut {cut}");
            assert_eq!(durable.outbox.acknowledged(), kept as u64, "cut {cut}");
            // It was written anew without what was torn.
            assert_eq!(reopened(&path), (durable, Damage::default()));
        }
    }

    #[test]
    fn a_torn_write_is_read_though_the_disk_takes_no_new_file_and_nothing_is_kept_until_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = ten(&directory);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        // A directory is where the new file would be.
        fs::create_dir(path.with_extension("new")).unwrap();
        let (mut log, durable, _) = Log::open(&path, FRESH).unwrap();
        assert_eq!(durable.outbox.depth(), 9);
        assert!(log.append(std::iter::once(&sample(20))).is_err() && log.recover(&durable).is_err());
        fs::remove_dir(path.with_extension("new")).unwrap();
        log.recover(&durable).unwrap();
        log.append(std::iter::once(&sample(20))).unwrap();
        assert_eq!((reopened(&path).0.outbox.depth(), reopened(&path).1), (10, Damage::default()));
    }

    #[test]
    fn a_flipped_bit_costs_at_most_one_sample_and_is_reported() {
        // Thousands of files are written and synced: in memory, where there is such a directory.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let (path, durable) = ten(&directory);
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            let (after, damage) = reopened(&path);
            let outbox = &after.outbox;
            assert!(outbox.depth() >= 9, "bit {bit}");
            assert_eq!(outbox.account_of(5), Some(FRESH.account), "bit {bit}: bindings are there twice");
            let at_the_end = outbox.depth() == 9 && outbox.sequences().all(|sequence| sequence != 10);
            // The last frame cannot be told from one that was being written: its sequence is not used again.
            assert!(damage.stretches == 1 || at_the_end, "bit {bit}: {damage:?}");
            assert_eq!(damage.lost_samples, u64::from(outbox.depth() == 9 && !at_the_end), "bit {bit}");
            assert!(outbox.next_sequence() >= durable.outbox.next_sequence(), "bit {bit}");
        }
    }

    #[test]
    fn garbage_and_what_belongs_to_others_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = ten(&directory);
        let other = Beginning { node: NodeId::from_bytes([2; 32]), ..FRESH };
        assert!(matches!(Log::open(&path, other), Err(StorageError::Damaged { .. })));
        for garbage in [vec![], vec![0; 4096], MAGIC.repeat(3000), [MAGIC.as_slice(), &[255; 64]].concat()] {
            fs::write(&path, &garbage).unwrap();
            assert!(matches!(Log::open(&path, FRESH), Err(StorageError::Damaged { .. })));
            assert_eq!(fs::read(&path).unwrap(), garbage, "a file that is refused is left as it is");
        }
    }

    #[test]
    fn the_file_stays_small_whatever_passes_through_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, mut durable) = ten(&directory);
        let (mut log, ..) = Log::open(&path, FRESH).unwrap();
        for first in (11..200_011).step_by(1_000) {
            let mut records: Vec<_> = (first..first + 1_000).map(sample).collect();
            records.push(Record::Truncate { account: FRESH.account, upto: first + 999 });
            log.append(records.iter()).unwrap();
            records.iter().for_each(|record| durable.apply(record));
            if log.is_bloated() {
                log.rewrite(&durable).unwrap();
            }
            assert!(fs::metadata(&path).unwrap().len() < 2 * Limits::JOURNAL_SLACK);
        }
        assert_eq!(reopened(&path).0, durable);
    }
}
