//! What the supervision leans on in ractor; an upgrade must not change it silently.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::mpsc;

#[derive(Debug)]
enum Message {
    Panic,
    Error,
    Hang,
}

struct Child {
    fails_to_start: bool,
}

impl Actor for Child {
    type Msg = Message;
    type State = ();
    type Arguments = mpsc::Sender<String>;

    async fn pre_start(&self, _: ActorRef<Message>, _: mpsc::Sender<String>) -> Result<(), ActorProcessingErr> {
        if self.fails_to_start { Err("no".into()) } else { Ok(()) }
    }

    async fn handle(&self, _: ActorRef<Message>, message: Message, _: &mut ()) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Panic => panic!("as asked"),
            Message::Error => Err("as asked".into()),
            Message::Hang => std::future::pending().await,
        }
    }
}

/// Tells what happens to its children.
struct Watcher;

impl Actor for Watcher {
    type Msg = ();
    type State = mpsc::Sender<String>;
    type Arguments = mpsc::Sender<String>;

    async fn pre_start(&self, _: ActorRef<()>, tell: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        Ok(tell)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        tell: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let text = match event {
            SupervisionEvent::ActorFailed(_, error) => format!("failed: {error}"),
            SupervisionEvent::ActorTerminated(_, _, reason) => format!("terminated: {}", reason.unwrap_or_default()),
            _ => return Ok(()),
        };
        tell.send(text).await?;
        Ok(())
    }
}

async fn watched() -> (ActorRef<()>, ActorRef<Message>, mpsc::Receiver<String>) {
    let (tell, told) = mpsc::channel(8);
    let (watcher, _) = Actor::spawn(None, Watcher, tell.clone()).await.unwrap();
    let child = Child { fails_to_start: false };
    let (child, _) = Actor::spawn_linked(None, child, tell, watcher.get_cell()).await.unwrap();
    (watcher, child, told)
}

#[tokio::test]
async fn each_end_has_its_event() {
    for (message, expected) in [(Message::Panic, "failed: as asked"), (Message::Error, "failed: as asked")] {
        let (_watcher, child, mut told) = watched().await;
        child.cast(message).unwrap();
        assert_eq!(told.recv().await.unwrap(), expected);
    }
    let (_watcher, child, mut told) = watched().await;
    child.cast(Message::Hang).unwrap();
    tokio::task::yield_now().await;
    child.kill();
    assert_eq!(told.recv().await.unwrap(), "terminated: killed");
    let (_watcher, child, mut told) = watched().await;
    child.stop(Some("enough".into()));
    assert_eq!(told.recv().await.unwrap(), "terminated: enough");
}

#[tokio::test]
async fn a_failing_start_sends_no_event() {
    let (watcher, _child, mut told) = watched().await;
    let (tell, _) = mpsc::channel(1);
    let failing = Actor::spawn_linked(None, Child { fails_to_start: true }, tell, watcher.get_cell()).await;
    assert!(matches!(failing, Err(SpawnErr::StartupFailed(_))));
    let silence = tokio::time::timeout(Duration::from_millis(50), told.recv()).await;
    assert!(silence.is_err());
}

#[tokio::test]
async fn the_default_supervisor_stops_when_a_child_ends() {
    struct Plain;
    impl Actor for Plain {
        type Msg = ();
        type State = ();
        type Arguments = ();
        async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }
    let (plain, ended) = Actor::spawn(None, Plain, ()).await.unwrap();
    let (tell, _) = mpsc::channel(1);
    let child = Child { fails_to_start: false };
    let (child, _) = Actor::spawn_linked(None, child, tell, plain.get_cell()).await.unwrap();
    child.cast(Message::Panic).unwrap();
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn children_of_a_parent_that_stops_are_killed() {
    let (watcher, child, _told) = watched().await;
    watcher.stop_and_wait(None, None).await.unwrap();
    let gone = async {
        while child.get_status() != ractor::ActorStatus::Stopped {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test]
async fn names_are_global_to_the_process() {
    let (tell, _) = mpsc::channel(1);
    let name = Some("tussock-test-name".to_owned());
    let _first = Actor::spawn(name.clone(), Child { fails_to_start: false }, tell.clone()).await.unwrap();
    let second = Actor::spawn(name, Child { fails_to_start: false }, tell).await;
    assert!(matches!(second, Err(SpawnErr::ActorAlreadyRegistered(_))));
}
