//! Whom a node had heard, kept for its next start. What is reloaded is a hint whom to dial, and no proof of life.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::limits::Limits;
use crate::proto::beacon::Beacon;
use crate::storage::StorageError;

/// Where beacons are kept. Its calls may block.
pub trait BeaconStorage: Debug + Send + Sync {
    /// Replaces what is kept: the first [`Limits::KEPT_BEACONS`] of these that came with their signature.
    fn save(&self, beacons: &[Arc<Beacon>]) -> Result<(), StorageError>;
    /// What is kept and whole, in the order in which it was saved.
    fn load(&self) -> Result<Vec<Beacon>, StorageError>;
}

/// The signed bytes that are worth keeping.
fn records(beacons: &[Arc<Beacon>]) -> Vec<Vec<u8>> {
    beacons.iter().filter_map(|beacon| beacon.sealed()).take(Limits::KEPT_BEACONS).collect()
}

fn read<'r>(records: impl Iterator<Item = &'r [u8]>) -> Vec<Beacon> {
    records.take(Limits::KEPT_BEACONS).filter_map(|record| Beacon::verify(record).ok()).collect()
}

/// Keeps beacons for as long as the process lives.
#[derive(Debug)]
pub struct MemoryBeacons(watch::Sender<Vec<Vec<u8>>>);

impl Default for MemoryBeacons {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl BeaconStorage for MemoryBeacons {
    fn save(&self, beacons: &[Arc<Beacon>]) -> Result<(), StorageError> {
        self.0.send_replace(records(beacons));
        Ok(())
    }

    fn load(&self) -> Result<Vec<Beacon>, StorageError> {
        Ok(read(self.0.borrow().iter().map(Vec::as_slice)))
    }
}

/// Keeps beacons in a file: a length of two bytes and a signed beacon, again and again. A record that was damaged has
/// a wrong signature and is left out; the others are read.
#[derive(Debug)]
pub struct FileBeacons {
    path: PathBuf,
}

impl FileBeacons {
    /// In a data directory, which exists.
    pub fn in_dir(directory: &Path) -> Result<Self, StorageError> {
        let path = directory.join("beacons");
        fs::create_dir_all(&path).map_err(|error| StorageError::Io { path: path.clone(), error })?;
        Ok(Self { path: path.join("neighbours") })
    }

    fn io(&self, error: std::io::Error) -> StorageError {
        StorageError::Io { path: self.path.clone(), error }
    }
}

impl BeaconStorage for FileBeacons {
    fn save(&self, beacons: &[Arc<Beacon>]) -> Result<(), StorageError> {
        let mut bytes = Vec::new();
        for record in records(beacons) {
            // A beacon is at most a kilobyte.
            bytes.extend_from_slice(&(record.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&record);
        }
        // Whole or not at all: the new file takes the old one's place when it is on the disk.
        let fresh = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(|error| self.io(error))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|error| self.io(error))?;
        fs::rename(&fresh, &self.path).map_err(|error| self.io(error))
    }

    fn load(&self) -> Result<Vec<Beacon>, StorageError> {
        let most = Limits::KEPT_BEACONS * (Limits::BEACON_BYTES + 2);
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(most as u64).read_to_end(&mut bytes).map_err(|error| self.io(error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.io(error)),
        };
        let mut rest = bytes.as_slice();
        let records = std::iter::from_fn(|| {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (record, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
            rest = after;
            Some(record)
        });
        Ok(read(records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Keypair;
    use crate::proto::beacon::tests::sample;

    /// A beacon as it is heard: with its signature.
    fn heard(n: u8) -> Arc<Beacon> {
        let key = Keypair::from_seed([n; 32]);
        Arc::new(Beacon::verify(&sample(&key).sign(&key)).unwrap())
    }

    /// What every adapter must do.
    fn conforms(open: &dyn Fn() -> Box<dyn BeaconStorage>) {
        let storage = open();
        assert_eq!(storage.load().unwrap(), []);
        storage.save(&[heard(1), heard(2)]).unwrap();
        assert_eq!(storage.load().unwrap(), [(*heard(1)).clone(), (*heard(2)).clone()]);
        // What is saved replaces what was; what was never heard has no signature and is not kept.
        let own = Arc::new(sample(&Keypair::from_seed([9; 32])));
        storage.save(&[own, heard(3)]).unwrap();
        assert_eq!(storage.load().unwrap(), [(*heard(3)).clone()]);
        let many: Vec<_> = std::iter::repeat_with(|| heard(4)).take(Limits::KEPT_BEACONS + 5).collect();
        storage.save(&many).unwrap();
        assert_eq!(storage.load().unwrap().len(), Limits::KEPT_BEACONS);
        storage.save(&[]).unwrap();
        assert_eq!(storage.load().unwrap(), []);
    }

    #[test]
    fn memory_conforms() {
        conforms(&|| Box::new(MemoryBeacons::default()));
    }

    #[test]
    fn a_file_conforms() {
        let directory = tempfile::tempdir().unwrap();
        conforms(&|| Box::new(FileBeacons::in_dir(directory.path()).unwrap()));
    }

    #[test]
    fn a_file_outlives_its_process_and_damage_costs_only_what_it_hit() {
        let directory = tempfile::tempdir().unwrap();
        let open = || FileBeacons::in_dir(directory.path()).unwrap();
        open().save(&[heard(1), heard(2), heard(3)]).unwrap();
        assert_eq!(open().load().unwrap().len(), 3);
        let path = directory.path().join("beacons/neighbours");
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(open().load().unwrap(), [(*heard(2)).clone(), (*heard(3)).clone()]);
        // Torn in the middle of the last record.
        fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
        assert_eq!(open().load().unwrap(), [(*heard(2)).clone()]);
        fs::write(&path, [255; 64]).unwrap();
        assert_eq!(open().load().unwrap(), []);
    }
}
