//! One LinkActor per connection, supervised by the TransportActor: it reads, and its end is the link's end.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::actors::context::Context;
use crate::limits::Limits;
use crate::messages::wire::{decode_beat, decode_frame};
use crate::messages::{RouterMessage, TransportMessage};
use crate::proto::frame::Frame;
use crate::proto::link::{self, CloseReason};
use crate::proto::router;
use crate::transport::{MeshConnection, Received};

pub struct LinkActor;

/// The reader, which ends with its actor.
pub struct Reading(JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Actor for LinkActor {
    type Msg = ();
    type State = Reading;
    type Arguments = (Context, Arc<dyn MeshConnection>);

    async fn pre_start(
        &self,
        me: ActorRef<()>,
        (context, connection): Self::Arguments,
    ) -> Result<Reading, ActorProcessingErr> {
        Ok(Reading(tokio::spawn(async move {
            let reason = read(&context, &*connection).await;
            me.stop(Some(reason));
        })))
    }
}

/// Reads until the connection ends, or something comes that must not; says why.
async fn read(context: &Context, connection: &dyn MeshConnection) -> String {
    let (conn, peer) = (connection.id(), connection.peer());
    let mut shown_alive: Option<Instant> = None;
    loop {
        let message = match connection.receive().await {
            Ok(Received::Datagram(bytes)) => match decode_beat(&bytes) {
                Ok(beat) => TransportMessage::Input(link::Input::Beat { conn, beat }),
                Err(error) => {
                    context.counters.drop_for(error.label());
                    continue;
                }
            },
            Ok(Received::Frame(bytes)) => match decode_frame(&bytes) {
                Ok(Frame::Router(frame)) if context.links.is_link(&peer, conn) => {
                    let input = router::Input::Frame { from: peer, frame };
                    if context.addresses.router.tell_data(RouterMessage::Input(input)).await.is_err() {
                        context.counters.drop_for("restarting");
                    }
                    if shown_alive.is_some_and(|at| at.elapsed() < Limits::SIGN_OF_LIFE) {
                        continue;
                    }
                    shown_alive = Some(Instant::now());
                    TransportMessage::Input(link::Input::Heard(conn))
                }
                Ok(frame) => TransportMessage::Input(link::Input::Frame { conn, frame }),
                Err(error) => {
                    context.counters.drop_for(error.label());
                    tracing::info!(peer = %peer.short(), %error, "a link is closed for what came over it");
                    connection.close(CloseReason::Fault);
                    return format!("fault: {error}");
                }
            },
            Err(reason) => {
                // The connection is alive, so it is what came over it that ends it: a length beyond the limit.
                if connection.is_alive() {
                    context.counters.drop_for("frame_too_long");
                    connection.close(CloseReason::Fault);
                }
                return reason;
            }
        };
        if context.addresses.transport.tell_data(message).await.is_err() {
            context.counters.drop_for("restarting");
        }
    }
}
