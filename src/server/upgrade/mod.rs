//! A new process takes over from a running one, without a refused connection or a lost session.
//!
//! The old process listens on a Unix socket (`server.upgrade_socket`); the new one connects to it.
//! Then, in this order:
//!
//! 1. Both agree on a version of the protocol. The old process sends its clock, the key of logins
//!    in progress and its listening sockets. The new process uses the sockets that its
//!    configuration has, and opens the others itself.
//! 2. When the new process has started, the old one sends its sessions. From here on each process
//!    asks the other about every login, logout and one-time code before it is answered
//!    ([`peer`](crate::handover::peer)).
//! 3. The new process is ready: it could serve. The old one closes the files of sessions, sends
//!    what changes with every request, such as rate limits, and yields.
//! 4. The new process opens the files, and is told to serve. It accepts connections and says so. The
//!    old one stops accepting, names the new one to the service manager, and drains. Until it has
//!    ended, each process tells the other what it changes, and what is used of sessions and of rate
//!    limits.
//!
//! Until the new process is told to serve, the old one can go on: if the new one fails or hangs, the
//! old one takes everything back. After that it does so only if the new process has ended, which
//! the system tells: two processes that serve without each other would be worse than none. Both
//! have the listening sockets, so connections that wait to be accepted are accepted by the process
//! that is there.
//!
//! With sessions in a shared store, no sessions are sent.

pub mod channel;
pub mod descriptors;
pub mod frames;
mod give;
pub mod hello;
pub mod socket;
mod successor;
mod take;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use self::give::{Giver, Successor};
pub use self::successor::Invocation;
pub use self::take::{Predecessor, TakeError, Yielded};
use crate::handover::peer::Topic;
use crate::policy::{Policies, Process, handover};

/// How long a new process may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long the new process may take to serve once it is ready, and the old one to yield.
const STEP: Duration = Duration::from_secs(5);

/// How often the uses of sessions are sent to the other process.
const USES: Duration = Duration::from_millis(750);

/// What the old process sends in bulk, by the first byte.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Bulk {
    /// Sessions, session keys and blocks: a list of entries.
    Sessions = 1,
    /// There are no more of them.
    EndOfSessions = 2,
    /// Other state of the process.
    State = 3,
    /// There is no more state: the new process takes over.
    Yielded = 4,
    /// The new process may serve: nothing is taken back any more, unless it dies at once.
    Serve = 5,
    /// The service manager knows the new process, and the old one drains.
    Drains = 6,
}

/// The number of each field of [`Bulk::Sessions`]: an entry.
const ENTRY: u32 = 1;

/// What the new process says.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Said {
    /// It has the sessions.
    Ready = 1,
    /// It has everything.
    CanServe = 2,
    /// It accepts connections.
    Serving = 3,
}

/// Answers what the other process asks.
fn answer(
    process: &Arc<Process>,
    policies: &Arc<Policies>,
) -> impl Fn(Topic, Vec<u8>) -> BoxFuture<'static, Vec<u8>> + Send + use<> {
    let (process, policies) = (process.clone(), policies.clone());
    move |topic, question| {
        let (process, policies) = (process.clone(), policies.clone());
        Box::pin(async move {
            match topic {
                // Empty: it cannot be understood.
                Topic::Session => process.sessions.answer(&question).await.unwrap_or_default(),
                Topic::Code => handover::answer_code(&process, &policies.current(), &question),
                Topic::Record => process.sessions.records().answer(&question).await,
                Topic::Rate => {
                    // Malformed uses count nowhere.
                    let _ = handover::count_uses(&policies.current(), &question);
                    Vec::new()
                }
                Topic::Jar => {
                    // A malformed jar is not taken.
                    let _ = process.sessions.take_jar(&question);
                    Vec::new()
                }
            }
        })
    }
}

/// Tells the other process the uses of sessions, since a time of the clock, and of rate limits,
/// until it is gone, or until `ending` is cancelled and then once more.
async fn stay_in_touch(
    process: &Process,
    policies: &Policies,
    mut since: u64,
    ending: &CancellationToken,
) {
    let sessions = async {
        while process.peer.is_linked() {
            let is_last = ending.is_cancelled();
            since = process.sessions.tell_uses(since).await;
            if is_last {
                break;
            }
            ending.run_until_cancelled(sleep(USES)).await;
        }
    };
    tokio::join!(sessions, handover::keep_telling_uses(process, policies, ending));
}

/// What a fuzz target needs.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    pub use super::channel::event::Event;
    pub use super::descriptors::decode as count_of_sockets;
    pub use super::frames::{Incoming, Kind, LONGEST};
    pub use super::hello::{Hello, Welcome, common_version, decode_refusal as refusal};
}
