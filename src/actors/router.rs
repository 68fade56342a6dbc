//! The RouterActor: samples up, commands down; acknowledged and delivered once their records are kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorCell;
use tokio::sync::watch;

use crate::actors::address::Address;
use crate::actors::context::Context;
use crate::actors::shell::Subject;
use crate::messages::{AccountReport, HostCommand, OwnAccount, Reply, RouterMessage, RouterReport, Subsystem};
use crate::proto::event::Event;
use crate::proto::node::{Output, after_router};
use crate::proto::packet::{Command, Order, Verdict};
use crate::proto::retirement::{RetireError, Retirement};
use crate::proto::router::{Effect, Input, Machine, Outcome, PublishError, Published, Snapshot};
use crate::storage::Loaded;
use crate::time::Time;

enum Waiting {
    Publish(Reply<Result<Published, PublishError>>),
    Command(Reply<Outcome>),
    Retire(Reply<Result<Retirement, RetireError>>),
}

pub struct Routing {
    context: Context,
    machine: Machine,
    kept: watch::Sender<Option<Arc<Snapshot>>>,
    waiting: BTreeMap<u64, Waiting>,
    requests: u64,
    /// Within which the journal takes records, and whether it has refused some.
    session: u64,
    refused: bool,
}

impl Subject for Routing {
    type Message = RouterMessage;
    const SUBSYSTEM: Subsystem = Subsystem::Router;

    async fn start(context: &Context, _me: &ActorCell, warm: bool) -> Result<Self, String> {
        let (now, kept) = (context.now(), context.snapshots().router.clone());
        let snapshot = kept.borrow().clone().filter(|_| warm);
        let Loaded { durable, session } = context.journal.load().await.ok_or("the journal has ended")?;
        let first_view = context.settings.first_view();
        let machine = Machine::new(now, context.settings.router.clone(), first_view, durable, snapshot.as_deref());
        let mut routing = Self {
            context: context.clone(),
            machine,
            kept,
            waiting: BTreeMap::new(),
            requests: now.as_micros(),
            session,
            refused: false,
        };
        // Known before the first frame can come: a child's sample must not find a router that knows no children.
        let view = context.view.borrow().clone();
        routing.step(now, Input::Placed(view));
        Ok(routing)
    }

    fn address(context: &Context) -> &Address<RouterMessage> {
        &context.addresses.router
    }

    fn handle(&mut self, now: Time, message: RouterMessage) {
        match message {
            RouterMessage::Input(input) => self.step(now, input),
            RouterMessage::Publish { telemetry, reply } => {
                let request = self.wait(Waiting::Publish(reply));
                self.step(now, Input::Publish { request, telemetry });
            }
            RouterMessage::Command { target, order, deadline, expires, reply } => {
                let request = self.wait(Waiting::Command(reply));
                self.step(now, Input::Issue { request, target, order, deadline, expires });
            }
            RouterMessage::Retire { retirement, reply } => {
                let request = self.wait(Waiting::Retire(reply));
                self.step(now, Input::Retire { request, retirement });
            }
            RouterMessage::Account(reply) => drop(reply.send(self.account())),
            RouterMessage::Report(reply) => drop(reply.send(self.report())),
            RouterMessage::Totals(reply) => {
                let account = self.machine.durable().account.as_ref();
                drop(reply.send(account.map(|account| account.totals.clone())));
            }
            RouterMessage::Refused(session) => self.reload(session),
            RouterMessage::Reloaded { durable, session } => {
                (self.session, self.refused) = (session, false);
                self.step(now, Input::Restored(durable));
            }
            RouterMessage::Outcome(command, reply) => drop(reply.send(self.machine.outcome(&command).cloned())),
        }
    }

    fn tick(&mut self, now: Time) {
        let mut effects = Vec::new();
        self.machine.tick(now, &mut effects);
        self.follow(effects);
    }

    fn deadline(&self) -> Option<Time> {
        self.machine.deadline()
    }

    fn save(&mut self) {
        self.kept.send_replace(Some(Arc::new(self.machine.snapshot())));
    }
}

impl Routing {
    fn wait(&mut self, waiting: Waiting) -> u64 {
        self.requests += 1;
        self.waiting.insert(self.requests, waiting);
        self.requests
    }

    fn step(&mut self, now: Time, input: Input) {
        let mut effects = Vec::new();
        self.machine.step(now, input, &mut effects);
        self.follow(effects);
    }

    fn follow(&mut self, effects: Vec<Effect>) {
        let Self { context, waiting, session, .. } = self;
        for effect in effects {
            after_router(effect, &mut |step| {
                if let Some(output) = context.follow(step) {
                    carry_out(context, waiting, *session, output);
                }
            });
        }
    }

    /// The journal has refused records: goes on from those that it kept, and with more when it takes them again.
    fn reload(&mut self, session: u64) {
        if session != self.session || std::mem::replace(&mut self.refused, true) {
            return;
        }
        let (journal, address) = (self.context.journal.clone(), self.context.addresses.router.clone());
        tokio::spawn(async move {
            let Some(Loaded { durable, session }) = journal.load().await else { return };
            // A router that has restarted since has loaded for itself.
            let _ = address.tell_data(RouterMessage::Reloaded { durable: Box::new(durable), session }).await;
            journal.writable().await;
            let _ = address.tell_data(RouterMessage::Input(Input::Writable)).await;
        });
    }

    fn account(&self) -> AccountReport {
        let durable = self.machine.durable();
        let own = durable.account.as_ref().map(|account| OwnAccount {
            id: account.id,
            samples: account.totals.samples,
            origins: account.counted().len(),
            retirements: durable.retirements.clone(),
        });
        AccountReport { own, root: self.machine.view().account, waiting: durable.outbox.waiting() }
    }

    fn report(&self) -> RouterReport {
        let durable = self.machine.durable();
        let (outbox, account) = (&durable.outbox, durable.account.as_ref());
        RouterReport {
            counts: self.machine.counts(),
            outbox_depth: outbox.depth(),
            outbox_bytes: outbox.bytes(),
            counted: account.map_or(0, |account| account.totals.samples),
            counted_by_origin: account.map(|account| account.counted().clone()).unwrap_or_default(),
            commands_issued: self.machine.commands_issued(),
            commands_delivered: self.machine.delivered(),
            commands_duplicate: self.machine.duplicate_commands(),
            summary: self.machine.summary().clone(),
        }
    }
}

fn carry_out(context: &Context, waiting: &mut BTreeMap<u64, Waiting>, session: u64, output: Output) {
    match output {
        Output::Persist { ticket: None, records } => {
            if !context.journal.note(session, records) {
                context.counters.drop_for("journal_full");
            }
        }
        Output::Persist { ticket: Some(ticket), records } => {
            let (kept, address) = (context.journal.append(session, records), context.addresses.router.clone());
            tokio::spawn(async move {
                let message = match kept.await {
                    true => RouterMessage::Input(Input::Persisted(ticket)),
                    false => RouterMessage::Refused(session),
                };
                // A router that has restarted since has loaded the records.
                let _ = address.tell_data(message).await;
            });
        }
        Output::Published { request, result } => {
            if let Some(Waiting::Publish(reply)) = waiting.remove(&request) {
                // The host may have stopped waiting; the sample is stored all the same.
                let _ = reply.send(result);
            }
        }
        Output::Retired { request, result } => {
            if let Some(Waiting::Retire(reply)) = waiting.remove(&request) {
                let _ = reply.send(result);
            }
        }
        Output::Concluded { request, outcome } => {
            if let Some(Waiting::Command(reply)) = waiting.remove(&request) {
                let _ = reply.send(outcome);
            }
        }
        Output::Deliver(command) => deliver(context, command),
        other => tracing::error!(?other, "an output without an owner"),
    }
}

fn deliver(context: &Context, command: Command) {
    let Command { id, issuer, order: Order::Host(text), remaining_ms, .. } = command else { return };
    let expires_in = Duration::from_millis(u64::from(remaining_ms));
    let command = HostCommand { id, issuer, text: text.clone(), expires_in };
    context.event(Event::CommandReceived { id, issuer, text });
    let refused = match &*context.host.borrow() {
        None => Some((Verdict::Refused, "no handler")),
        Some(host) => host.try_send(command).err().map(|_| (Verdict::Failed, "the host takes no more commands")),
    };
    if let Some((verdict, text)) = refused {
        let input = Input::Answered { command: id, verdict, text: text.to_owned() };
        if context.addresses.router.tell(RouterMessage::Input(input)).is_err() {
            context.counters.drop_for("mailbox_full");
        }
    }
}
