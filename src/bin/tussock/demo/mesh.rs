//! The mesh of the demo: nodes in this process, publishing all the time, and one process of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tussock::admin::{runtime_dir, serve};
use tussock::config::Layers;
use tussock::{GeoPoint, Keypair, Level, Node, NodeId, Telemetry};

use crate::output::{Failure, exit};
use crate::run::{accept_commands, private_dir};

/// Where the company stands.
const CENTRE: (f64, f64) = (37.77, -122.41);
/// How often each platform publishes.
const PUBLISH: Duration = Duration::from_millis(100);

/// A node of this process.
pub struct Member {
    pub name: String,
    pub node: Node,
    /// Samples for which `publish` returned Ok.
    pub acknowledged: Arc<AtomicU64>,
    publisher: Option<JoinHandle<()>>,
    accepting: JoinHandle<()>,
}

/// The squad that is a process of its own.
pub struct Victim {
    pub name: String,
    pub id: NodeId,
    pub pid: Option<u32>,
    listen: String,
    child: Child,
    _directory: tempdir::TempDir,
}

pub struct Mesh {
    pub members: Vec<Member>,
    pub victim: Victim,
    publishing: Arc<AtomicBool>,
    serving: Option<Serving>,
}

/// Control sockets, for as long as people look around.
struct Serving {
    directory: PathBuf,
    sockets: Vec<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.sockets.iter().for_each(JoinHandle::abort);
        // What stays behind is a directory of sockets that nobody answers at.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A node that is to be.
struct Plan {
    name: String,
    level: Level,
    position: GeoPoint,
    key: Keypair,
}

impl Mesh {
    pub async fn start(seed: u64, nodes: usize) -> Result<Self, Failure> {
        let plans = plan(seed, nodes);
        let mut members: Vec<Member> = Vec::new();
        let mut bootstrap: Vec<(NodeId, Vec<std::net::SocketAddr>)> = Vec::new();
        let publishing = Arc::new(AtomicBool::new(true));
        let (mut victim, mut superiors_stand) = (None, false);
        for plan in plans {
            if plan.level == Level::PLATFORM && !superiors_stand {
                superiors_stand = true;
                until_joined(&members, &victim).await;
            }
            if plan.name == "squad-2" {
                victim = Some(Victim::start(&plan, &bootstrap).await?);
                continue;
            }
            let mut builder = Node::builder().config(settings()?).name(&plan.name).level(plan.level).key(plan.key);
            builder = builder.position(plan.position);
            for (id, addresses) in &bootstrap {
                builder = builder.peer(*id, addresses.clone());
            }
            let node = builder.spawn().await.map_err(|error| not_started(&plan.name, &error))?;
            if bootstrap.len() < 3 {
                bootstrap.push((node.id(), node.listen()));
            }
            let acknowledged = Arc::new(AtomicU64::new(0));
            let accepting = accept_commands(&node);
            let publisher = (plan.level == Level::PLATFORM)
                .then(|| publish(node.clone(), acknowledged.clone(), publishing.clone()));
            members.push(Member { name: plan.name, node, acknowledged, publisher, accepting });
        }
        let victim = victim.ok_or_else(|| Failure::new(exit::FAILED, "demo", "there is no squad-2", "report this"))?;
        Ok(Self { members, victim, publishing, serving: None })
    }

    /// Has every node of this process answer at a control socket of its own, and says in which directory.
    pub fn serve(&mut self) -> std::io::Result<PathBuf> {
        private_dir(&runtime_dir())?;
        let directory = runtime_dir().join(format!("demo-{}", std::process::id()));
        private_dir(&directory)?;
        let socket = |member: &Member| serve(member.node.clone(), &directory.join(format!("{}.sock", member.name)));
        let sockets = self.members.iter().map(socket).collect::<std::io::Result<_>>()?;
        self.serving = Some(Serving { directory: directory.clone(), sockets });
        Ok(directory)
    }

    pub fn root(&self) -> &Node {
        &self.members[0].node
    }

    pub fn get(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    pub fn name_of(&self, id: NodeId) -> String {
        let member = self.members.iter().find(|member| member.node.id() == id);
        match member {
            Some(member) => member.name.clone(),
            None if id == self.victim.id => self.victim.name.clone(),
            None => id.short(),
        }
    }

    /// How many nodes are alive.
    pub fn living(&self) -> usize {
        self.members.len() + usize::from(self.victim.pid.is_some())
    }

    /// Samples acknowledged to hosts of living nodes, by origin.
    pub fn acknowledged(&self) -> BTreeMap<NodeId, u64> {
        let of = |member: &Member| (member.node.id(), member.acknowledged.load(Ordering::SeqCst));
        self.members.iter().map(of).filter(|(_, count)| *count > 0).collect()
    }

    /// Samples that the root has committed, by origin.
    pub async fn counted(&self) -> BTreeMap<NodeId, u64> {
        self.root().router().report().await.map(|report| report.counted_by_origin).unwrap_or_default()
    }

    pub fn members(&self) -> Vec<Value> {
        let described = |member: &Member| {
            let (node, view) = (&member.node, member.node.view());
            let name_of = |id| json!({"id": id, "name": self.name_of(id)});
            json!({
                "node": {"id": node.id().to_string(), "name": member.name},
                "level": node.config().topology.levels.label(view.level),
                "role": view.role,
                "parent": view.parent_id().map(|id| json!({"id": id.to_string(), "name": name_of(id)["name"]})),
                "rank": view.rank(),
                "listen": node.listen(),
                "pid": std::process::id(),
            })
        };
        let victim = json!({
            "node": {"id": self.victim.id.to_string(), "name": self.victim.name},
            "level": "squad",
            "role": null,
            "parent": null,
            "rank": null,
            "listen": [self.victim.listen],
            "pid": self.victim.pid,
        });
        self.members.iter().map(described).chain([victim]).collect()
    }

    /// Lets every publisher finish the call it is in.
    pub async fn stop_publishing(&mut self) {
        self.publishing.store(false, Ordering::SeqCst);
        for publisher in self.members.iter_mut().filter_map(|member| member.publisher.take()) {
            let _ = publisher.await;
        }
    }

    pub async fn stop(&mut self) {
        self.stop_publishing().await;
        self.serving = None;
        let _ = self.victim.child.start_kill();
        for member in &mut self.members {
            member.accepting.abort();
        }
        let stopping = self.members.iter().rev().map(|member| member.node.shutdown());
        for stopped in futures_util::future::join_all(stopping).await {
            if let Err(error) = stopped {
                tracing::debug!(%error, "stopped before");
            }
        }
    }
}

impl Victim {
    async fn start(plan: &Plan, bootstrap: &[(NodeId, Vec<std::net::SocketAddr>)]) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| not_started(&plan.name, &error);
        let directory = tempdir::TempDir::new().map_err(failed)?;
        let data_dir = directory.path().join("squad");
        std::fs::create_dir_all(&data_dir).map_err(failed)?;
        std::fs::write(data_dir.join("identity.key"), plan.key.seed()).map_err(failed)?;
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        let (lat, lon) = (plan.position.lat(), plan.position.lon());
        command.args(["run", "--name", &plan.name, "--level", "squad", "--data-dir"]).arg(&data_dir);
        command.args(["--position", &format!("{lat},{lon}"), "--set", "topology.max_distance=3000.0"]);
        command.args(["--set", "telemetry.machine_health=false", "--set", "formation.name=demo", "--log", "error"]);
        for (id, addresses) in bootstrap {
            if let Some(address) = addresses.first() {
                command.args(["--peer", &format!("{id}@{address}")]);
            }
        }
        // Its socket's link goes with the directory.
        command.env("XDG_RUNTIME_DIR", directory.path());
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let pid = child.id();
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            let ready = tokio::time::timeout(Duration::from_secs(10), stdout.read_line(&mut line)).await;
            if !matches!(ready, Ok(Ok(read)) if read > 0) {
                return Err(not_started(&plan.name, &"its process did not say that it is ready"));
            }
        }
        let listen = line.split_whitespace().find_map(|word| word.strip_prefix("listen=")).unwrap_or("").to_owned();
        Ok(Self { name: plan.name.clone(), id: plan.key.id(), pid, listen, child, _directory: directory })
    }

    /// SIGKILL: the process has no chance to say anything.
    pub async fn kill(&mut self) -> std::io::Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        self.pid = None;
        Ok(())
    }
}

/// Platforms that start while a squad is still joining would choose another: the one that is killed needs children.
async fn until_joined(members: &[Member], victim: &Option<Victim>) {
    let Some(root) = members.first() else { return };
    let mut views = root.node.views();
    let joined = views.wait_for(|view| {
        victim.as_ref().is_none_or(|victim| view.descendants.contains_key(&victim.id))
            && view.descendants.len() >= members.len()
    });
    // If they do not join, the first step says so.
    let _ = tokio::time::timeout(Duration::from_secs(10), joined).await;
}

fn settings() -> Result<tussock::Config, Failure> {
    let layers = Layers::new()
        .set("topology.max_distance", "3000.0", "the demo".into())
        .set("formation.name", "\"demo\"", "the demo".into())
        .set("telemetry.window", "\"250ms\"", "the demo".into())
        .set("partition.timeout", "\"2s\"", "the demo".into());
    Ok(layers.environment(crate::run::variables()).build()?)
}

fn not_started(name: &str, error: &impl ToString) -> Failure {
    let message = format!("{name} did not start: {}", error.to_string());
    Failure::new(exit::FAILED, "not_started", message, "see why with --log debug")
}

/// One company, two platoons, three squads, six platforms; further nodes are platforms, with a squad per ten.
fn plan(seed: u64, nodes: usize) -> Vec<Plan> {
    let squads = 3 + (nodes - 12) / 10;
    let platforms = nodes - 3 - squads;
    let centre = GeoPoint::new(CENTRE.0, CENTRE.1).expect("the centre is on the Earth");
    let turn = |i: usize, of: usize| i as f64 / of as f64 * std::f64::consts::TAU;
    let platoon = |i: usize| centre.offset(1000.0, turn(i, 2));
    // Each squad stands by its platoon, each platform by its squad, so that who belongs where is plain.
    let squad = |i: usize| platoon(i % 2).offset(400.0, turn(i / 2, squads.div_ceil(2)));
    let platform = |i: usize| squad(i % squads).offset(60.0, turn(i / squads, platforms.div_ceil(squads)));
    let mut places = vec![("company-0".to_owned(), Level::COMPANY, centre)];
    places.extend((0..2).map(|i| (format!("platoon-{i}"), Level::PLATOON, platoon(i))));
    places.extend((0..squads).map(|i| (format!("squad-{i}"), Level::SQUAD, squad(i))));
    places.extend((0..platforms).map(|i| (format!("platform-{i}"), Level::PLATFORM, platform(i))));
    let key = |name: &str| Keypair::from_seed(blake3::derive_key(&format!("tussock demo {seed}"), name.as_bytes()));
    places.into_iter().map(|(name, level, position)| Plan { key: key(&name), name, level, position }).collect()
}

fn publish(node: Node, acknowledged: Arc<AtomicU64>, publishing: Arc<AtomicBool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(PUBLISH);
        let mut reading = 20.0;
        while publishing.load(Ordering::SeqCst) {
            beat.tick().await;
            reading += 0.01;
            if node.publish(Telemetry::new().metric("temperature", reading)).await.is_ok() {
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
}

/// A directory that goes with the demo.
mod tempdir {
    use std::path::Path;

    use super::PathBuf;

    pub struct TempDir(PathBuf);

    impl TempDir {
        pub fn new() -> std::io::Result<Self> {
            let path = std::env::temp_dir().join(format!("tussock-demo-{}", std::process::id()));
            std::fs::create_dir_all(&path)?;
            Ok(Self(path))
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
