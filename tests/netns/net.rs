//! Hosts that are network namespaces, and the switch between them.
//!
//! A namespace lasts as long as this process has it open or another runs in it: nothing is left behind, however a test
//! ends. Its only device is a tunnel whose other end is here, so that this process carries every packet, and may keep
//! it back for a while, lose it or count it.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tun_rs::{AsyncDevice, DeviceBuilder};

/// Packets under way at most, as in the queue of a router; those beyond it are lost.
const UNDER_WAY: usize = 20_000;

pub struct Net {
    spaces: Vec<File>,
    switch: Arc<Switch>,
    _runtime: Runtime,
}

struct Switch {
    ports: Vec<AsyncDevice>,
    links: watch::Sender<Links>,
    under_way: AtomicUsize,
    bytes: AtomicU64,
}

/// How every link is.
#[derive(Clone, Copy, Default)]
pub struct Links {
    pub delay: Duration,
    /// Up to this much later, for each packet anew.
    pub jitter: Duration,
    /// The share of packets that is lost.
    pub loss: f64,
    /// Nothing passes from the hosts below this one to the others, or neither way.
    pub cut: Option<(usize, Cut)>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Cut {
    OneWay,
    BothWays,
}

impl Links {
    fn are_cut(&self, from: usize, to: usize) -> bool {
        self.cut.is_some_and(|(half, cut)| match (from < half, to < half) {
            (true, false) => true,
            (false, true) => cut == Cut::BothWays,
            _ => false,
        })
    }
}

impl Net {
    /// So many hosts; why not, if this may not be done here.
    pub fn new(hosts: usize) -> io::Result<Self> {
        let (mut spaces, mut devices) = (vec![], vec![]);
        for host in 0..hosts {
            // A thread moves into a new namespace, and makes the device there.
            let made = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let device = DeviceBuilder::new().name("eth0").ipv4(address(host), 16, None).build_sync()?;
                io::Result::Ok((File::open("/proc/thread-self/ns/net")?, device))
            });
            let (space, device) = made.join().expect("it does not panic")?;
            spaces.push(space);
            devices.push(device);
        }
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).on_thread_start(hurry).enable_all().build()?;
        let entered = runtime.enter();
        let ports = devices.into_iter().map(AsyncDevice::new).collect::<io::Result<_>>()?;
        drop(entered);
        let (links, under_way, bytes) = Default::default();
        let switch = Arc::new(Switch { ports, links, under_way, bytes });
        for host in 0..hosts {
            runtime.spawn(Arc::clone(&switch).carry_from(host));
        }
        Ok(Self { spaces, switch, _runtime: runtime })
    }

    pub fn address(&self, host: usize) -> Ipv4Addr {
        address(host)
    }

    /// A command that runs another on a host, and ends it when this process ends.
    pub fn on(&self, host: usize, inner: &Command) -> Command {
        let space = format!("--net=/proc/{}/fd/{}", std::process::id(), self.spaces[host].as_raw_fd());
        let mut command = Command::new("nsenter");
        command.args([&space, "setpriv", "--pdeathsig", "KILL"]);
        command.arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command
    }

    /// How every link is from now on.
    pub fn set(&self, links: Links) {
        self.switch.links.send_replace(links);
    }

    /// What has come to hosts by now, with the headers of IP and UDP.
    pub fn bytes(&self) -> u64 {
        self.switch.bytes.load(Ordering::Relaxed)
    }
}

fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host as u8 + 1)
}

impl Switch {
    async fn carry_from(self: Arc<Self>, from: usize) {
        let mut random = Pcg32::seed_from_u64(from as u64);
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = self.ports[from].recv(&mut buffer).await {
            let packet = &buffer[..length];
            let Some(to) = destination(packet).filter(|to| *to < self.ports.len()) else { continue };
            let links = *self.links.borrow();
            let is_full = self.under_way.load(Ordering::Relaxed) >= UNDER_WAY;
            if is_full || links.are_cut(from, to) || random.random_bool(links.loss) {
                continue;
            }
            let late = links.delay + links.jitter.mul_f64(random.random());
            self.under_way.fetch_add(1, Ordering::Relaxed);
            let (switch, packet) = (Arc::clone(&self), packet.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                if switch.ports[to].send(&packet).await.is_ok() {
                    switch.bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
                }
                switch.under_way.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// Puts this thread before all hosts: a network does not lose packets because they are busy.
fn hurry() {
    let thread = std::fs::read_link("/proc/thread-self").expect("there is a thread");
    let thread = thread.file_name().expect("it has a number");
    let status = Command::new("renice").args(["-n", "-20", "-p"]).arg(thread).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "this thread has priority");
}

/// The host that an IPv4 packet is for.
fn destination(packet: &[u8]) -> Option<usize> {
    match packet.get(16..20)? {
        [10, 77, 0, host] if packet[0] >> 4 == 4 => usize::from(*host).checked_sub(1),
        _ => None,
    }
}
