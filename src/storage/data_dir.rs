//! A node's directory: its key, its lock, its incarnation.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::id::Keypair;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("{path}: {error}", path = .path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{path} is in use by {holder}", path = .path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("{path} is damaged: {detail}", path = .path.display())]
    Damaged { path: PathBuf, detail: &'static str },
}

/// A data directory, locked while it is held.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, making it (0700) if there is none, and locks it for a process of this name.
    pub fn open(path: &Path, name: &str) -> Result<Self, StorageError> {
        make(path)?;
        let file = path.join("lock");
        let io = |error| StorageError::Io { path: file.clone(), error };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".into() } else { holder };
                return Err(StorageError::InUse { path: path.to_owned(), holder });
            }
            Err(fs::TryLockError::Error(error)) => return Err(io(error)),
        }
        let holder = format!("{name} (pid {})", std::process::id());
        lock.write_all(holder.as_bytes()).and_then(|()| lock.set_len(holder.len() as u64)).map_err(io)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in this one, made if there is none.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf, StorageError> {
        let path = self.path.join(name);
        make(&path)?;
        Ok(path)
    }

    /// The next incarnation, on disk before it is used. In place, as it takes no room on a full disk.
    pub fn next_incarnation(&self) -> Result<u64, StorageError> {
        let path = self.path.join("incarnation");
        let io = |error| StorageError::Io { path: path.clone(), error };
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                replace(&path, written(1).as_bytes())?;
                return Ok(1);
            }
            Err(error) => return Err(io(error)),
        };
        let mut bytes = Vec::new();
        (&mut file).take(64).read_to_end(&mut bytes).map_err(io)?;
        let last = str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let next = last.and_then(|last| last.checked_add(1)).ok_or(StorageError::Damaged {
            path: path.clone(),
            detail: "it does not hold a number; write the last known incarnation into it",
        })?;
        let text = written(next);
        let mut write = || {
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)?;
            file.sync_all()
        };
        write().map_err(io)?;
        Ok(next)
    }
}

/// As long for every number: a file whose length the disk had not yet noted when the power went would hold another one.
fn written(incarnation: u64) -> String {
    format!("{incarnation:020}")
}

/// The key in a directory, made if there is none. Needs no lock.
pub fn identity(directory: &Path) -> Result<Keypair, StorageError> {
    make(directory)?;
    let path = directory.join("identity.key");
    match fs::read(&path) {
        Ok(bytes) => match <[u8; 32]>::try_from(bytes.as_slice()) {
            Ok(seed) => Ok(Keypair::from_seed(seed)),
            Err(_) => Err(StorageError::Damaged { path, detail: "a key has 32 bytes; restore it from a backup" }),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = Keypair::generate();
            replace(&path, &key.seed())?;
            Ok(key)
        }
        Err(error) => Err(StorageError::Io { path, error }),
    }
}

fn make(directory: &Path) -> Result<(), StorageError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| StorageError::Io { path: directory.to_owned(), error })
}

/// Writes a file as a whole or not at all, and only for its owner.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| StorageError::Io { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node");
        let id = identity(&path).unwrap().id();
        assert_eq!(identity(&path).unwrap().id(), id);
        fs::write(path.join("identity.key"), b"short").unwrap();
        assert!(matches!(identity(&path), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn a_second_process_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let held = DataDir::open(directory.path(), "alpha").unwrap();
        let refused = DataDir::open(directory.path(), "beta").unwrap_err().to_string();
        assert!(refused.contains("alpha (pid"), "{refused}");
        drop(held);
        assert!(DataDir::open(directory.path(), "beta").is_ok());
    }

    #[test]
    fn incarnations_rise() {
        let directory = tempfile::tempdir().unwrap();
        let held = DataDir::open(directory.path(), "alpha").unwrap();
        assert_eq!([held.next_incarnation().unwrap(), held.next_incarnation().unwrap()], [1, 2]);
        let path = directory.path().join("incarnation");
        for (kept, next) in [("9", 10), ("00041\n", 42)] {
            fs::write(&path, kept).unwrap();
            assert_eq!(held.next_incarnation().unwrap(), next);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{next:020}"));
        }
        for damaged in ["", "\u{0}", "many", "18446744073709551615"] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(held.next_incarnation(), Err(StorageError::Damaged { .. })), "{damaged:?}");
        }
    }
}
