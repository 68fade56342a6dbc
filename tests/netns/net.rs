//! Hosts that are network namespaces, on two bridges with one link between them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const PREFIX: &str = "tussock";

/// Removed with everything in it at the end; what an interrupted run left behind, by the next one.
pub struct Net {
    name: String,
    hosts: usize,
}

impl Net {
    /// Hosts `0..half` on one side, the others on the other; why not, if this may not be done here.
    pub fn new(hosts: usize, half: usize) -> Result<Self, String> {
        remove_leftovers();
        let net = Self { name: format!("{PREFIX}-{}", std::process::id()), hosts: 0 };
        let switch = net.switch();
        ip(&[], &format!("netns add {switch}\n"))?;
        let net = Self { hosts, ..net };
        let spaces: String = (0..hosts).map(|i| format!("netns add {}\n", net.space(i))).collect();
        ip(&[], &spaces)?;
        let mut lines = String::from(
            "link add left type bridge\nlink add right type bridge\nlink set left up\nlink set right up\n\
             link add joint type veth peer name tnioj\nlink set joint master left up\nlink set tnioj master right up\n",
        );
        for i in 0..hosts {
            let (space, side) = (net.space(i), if i < half { "left" } else { "right" });
            lines += &format!("link add h{i} type veth peer name eth0 netns {space}\nlink set h{i} master {side} up\n");
        }
        ip(&["-n", &switch], &lines)?;
        for i in 0..hosts {
            let lines = format!("address add {}/16 dev eth0\nlink set lo up\nlink set eth0 up\n", address(i));
            ip(&["-n", &net.space(i)], &lines)?;
        }
        Ok(net)
    }

    /// A command that runs another on a host, and ends it when this process ends.
    pub fn on(&self, host: usize, inner: &Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(host), "setpriv", "--pdeathsig", "KILL"]);
        command.arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command
    }

    /// Cuts the link between both sides.
    pub fn cut(&self) {
        ip(&["-n", &self.switch()], "link set joint down\n").unwrap();
    }

    pub fn heal(&self) {
        ip(&["-n", &self.switch()], "link set joint up\n").unwrap();
    }

    fn space(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let all = (0..self.hosts).map(|i| self.space(i)).chain([self.switch()]);
        remove(all.collect());
    }
}

pub fn address(host: usize) -> String {
    format!("10.77.{}.{}", host / 250, host % 250 + 1)
}

fn remove_leftovers() {
    let Ok(listed) = Command::new("ip").args(["netns", "list"]).output() else { return };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let is_left = |name: &&str| {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
    };
    remove(names.filter(is_left).map(str::to_owned).collect());
}

fn remove(names: Vec<String>) {
    for name in names {
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
}

/// Runs lines of `ip`.
fn ip(options: &[&str], lines: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    command.args(options).args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("ip cannot be run (install iproute2): {error}"))?;
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match (output.status.success(), written) {
        (true, Some(Ok(()))) => Ok(()),
        _ => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
