//! Starting the binary and asking it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_tussock");

/// A directory for a test's files and sockets, with a short path, and a runtime directory of its own.
pub struct Place(tempfile::TempDir);

const PREFIX: &str = "tussock-test-";

/// Removes what tests left behind that were killed: directories are named for their process.
fn sweep() {
    let owner = |name: &str| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok();
    let is_gone = |process: u32| Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{process}")).exists();
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if entry.file_name().to_str().and_then(owner).is_some_and(is_gone) {
            // Another test may be at it.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Place {
    pub fn new() -> Self {
        sweep();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        Self(tempfile::Builder::new().prefix(&prefix).tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The binary, with nothing of the environment that would change what it does.
    pub fn tussock(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(arguments).current_dir(self.0.path()).env("XDG_RUNTIME_DIR", self.path("runtime"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TUSSOCK_")) {
            command.env_remove(name);
        }
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.tussock(arguments).output().unwrap()
    }

    /// Runs a verb with JSON output and returns its exit code and its envelope.
    pub fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.output(&[arguments, &["--json"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        let value = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{arguments:?}: {error}: {text:?} {}", String::from_utf8_lossy(&output.stderr))
        });
        (output.status.code().unwrap(), value)
    }

    /// Starts a node and waits until it says that it is ready.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Running {
        let data_dir = self.path(name);
        let directory = data_dir.to_str().unwrap().to_owned();
        let all = [&["run", "--name", name, "--data-dir", &directory], arguments].concat();
        self.started(name, &directory, &mut self.tussock(&all))
    }

    /// The same with a command that runs a node in this directory.
    pub fn started(&self, name: &str, data_dir: &str, command: &mut Command) -> Running {
        let stderr = std::fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        assert_eq!(words.first().map(String::as_str), Some("ready"), "{line:?} {}", self.log(name));
        let listen = words[3].strip_prefix("listen=").unwrap().to_owned();
        Running { data_dir: data_dir.to_owned(), id: words[2].clone(), listen, stdin: child.stdin.take(), child }
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Asks a node's status until it is so.
    pub fn until(&self, node: &Running, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let (_, status) = self.json(&["status", "--data-dir", &node.data_dir]);
            if so(&status["data"]) {
                return status["data"].clone();
            }
            assert!(started.elapsed() < Duration::from_secs(60), "never: {what}: {status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A node's process; killed if it is still there at the end.
pub struct Running {
    pub data_dir: String,
    pub id: String,
    pub listen: String,
    pub stdin: Option<ChildStdin>,
    child: Child,
}

impl Running {
    pub fn peer(&self) -> String {
        format!("{}@{}", self.id, self.listen)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn send(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Sends a signal and returns the exit code.
    pub fn signal(&mut self, signal: &str) -> Option<i32> {
        self.send(signal);
        self.wait()
    }

    pub fn wait(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < Duration::from_secs(30), "the process does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.write_all(b"\n").unwrap();
        stdin.flush().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn name(node: &Value) -> Option<&str> {
    node["name"].as_str()
}

pub fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}
