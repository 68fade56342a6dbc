//! Hosts that are network namespaces, behind two routers with one link between them.
//!
//! They are routed and not bridged, for the kernel keeps one table of neighbours for all namespaces: fifty hosts that each
//! know forty by their hardware's address are more than it holds.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const PREFIX: &str = "tussock";
/// The second bytes of the addresses on either side.
const SIDES: [u8; 2] = [77, 78];

/// Removed with everything in it at the end; what an interrupted run left behind, by the next one.
pub struct Net {
    name: String,
    hosts: usize,
    half: usize,
}

impl Net {
    /// Hosts `0..half` on one side, the others on the other; why not, if this may not be done here.
    pub fn new(hosts: usize, half: usize) -> Result<Self, String> {
        remove_leftovers();
        let net = Self { name: format!("{PREFIX}-{}", std::process::id()), hosts, half };
        let [left, right] = net.routers();
        ip(&[], &format!("netns add {left}\nnetns add {right}\n"))?;
        ip(&["-n", &left], &format!("link add joint type veth peer name joint netns {right}\n"))?;
        for (side, router) in [&left, &right].into_iter().enumerate() {
            ip(&["-n", router], &format!("address add 169.254.2.{}/30 dev joint\nlink set joint up\n", side + 1))?;
            let forward = ["netns", "exec", router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"];
            let status = Command::new("ip").args(forward).status().map_err(|error| error.to_string())?;
            status.success().then_some(()).ok_or("a namespace cannot be made a router")?;
        }
        let spaces: String = (0..hosts).map(|i| format!("netns add {}\n", net.space(i))).collect();
        ip(&[], &spaces)?;
        for (side, router) in [&left, &right].into_iter().enumerate() {
            let mut lines = String::new();
            for i in (0..hosts).filter(|i| (*i >= half) == (side == 1)) {
                let (space, address) = (net.space(i), net.address(i));
                lines += &format!(
                    "link add h{i} type veth peer name eth0 netns {space}\nlink set h{i} up\n\
                     address add 169.254.1.1/32 dev h{i}\nroute add {address}/32 dev h{i}\n"
                );
            }
            ip(&["-n", router], &lines)?;
        }
        for i in 0..hosts {
            let lines = format!(
                "address add {}/32 dev eth0\nlink set lo up\nlink set eth0 up\n\
                 route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n",
                net.address(i)
            );
            ip(&["-n", &net.space(i)], &lines)?;
        }
        net.heal();
        Ok(net)
    }

    pub fn address(&self, host: usize) -> String {
        format!("10.{}.0.{}", SIDES[usize::from(host >= self.half)], host + 1)
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

    /// From now on nothing passes from the left side to the right, and nobody is told.
    pub fn cut_one_way(&self) {
        let [left, _] = self.routers();
        ip(&["-n", &left], &format!("route replace blackhole 10.{}.0.0/16\n", SIDES[1])).unwrap();
    }

    /// The same in both directions.
    pub fn cut(&self) {
        self.cut_one_way();
        let [_, right] = self.routers();
        ip(&["-n", &right], &format!("route replace blackhole 10.{}.0.0/16\n", SIDES[0])).unwrap();
    }

    pub fn heal(&self) {
        let [left, right] = self.routers();
        ip(&["-n", &left], &format!("route replace 10.{}.0.0/16 via 169.254.2.2\n", SIDES[1])).unwrap();
        ip(&["-n", &right], &format!("route replace 10.{}.0.0/16 via 169.254.2.1\n", SIDES[0])).unwrap();
    }

    fn space(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    fn routers(&self) -> [String; 2] {
        [format!("{}-left", self.name), format!("{}-right", self.name)]
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let all = (0..self.hosts).map(|i| self.space(i)).chain(self.routers());
        remove(all.collect());
    }
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
