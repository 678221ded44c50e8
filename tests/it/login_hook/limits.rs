//! How many calls of the hook may be in flight.

use futures_util::future::join_all;

use super::fake::FakeHook;
use super::requests;
use crate::harness::{Stack, until};

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_limit_wait_and_beyond_the_queue_they_fail_at_once() {
    let hook = FakeHook::start().await;
    let limits = "wechat.max_in_flight = 2\nwechat.queue = 3\nlogin.hook.timeout = \"20s\"\n";
    let stack = Stack::start_with(&hook.section(limits)).await;
    hook.hold();
    let logins = join_all((0..6).map(async |number: u64| {
        // At once, they would not all find a place in the queue for exchanges.
        until("earlier logins are exchanged", async || stack.sandbox.exchanges() >= number).await;
        stack.try_login(&format!("user-alice-{number}")).await
    }));
    let (responses, ()) = tokio::join!(logins, async {
        stack.until_metric(&requests("overloaded"), 1.0).await;
        hook.until_calls(2).await;
        assert_eq!(hook.calls().len(), 2, "the others wait");
        hook.release();
    });
    let count = |status| responses.iter().filter(|response| response.status == status).count();
    assert_eq!((count(200), count(503)), (5, 1));
    let failed = responses.iter().find(|response| response.status == 503).unwrap();
    failed.assert_error(503, "login_unavailable", "login");
    assert_eq!(hook.calls().len(), 5);
    assert_eq!(stack.metric(&requests("ok")).await, 5.0);
}
