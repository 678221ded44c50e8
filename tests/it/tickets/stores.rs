//! Tickets in memory, and in a Redis that two gateways share.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use super::{ON, ask, assert_ended, ticket, ticket_with, with};
use crate::harness::redis::RedisServer;
use crate::harness::{Stack, THREE_ROUTES, openid, until};
use crate::shared_store::{gateway, url};

/// Gateways that share their sessions.
struct Gateways {
    all: Vec<Stack>,
    /// Outlives them.
    store: Option<RedisServer>,
}

impl Gateways {
    async fn in_memory() -> Self {
        let stack = Stack::start_with(&format!("{ON}{THREE_ROUTES}")).await;
        Self { all: vec![stack], store: None }
    }

    async fn on_redis() -> Self {
        let store = RedisServer::start();
        let more = format!("{ON}{THREE_ROUTES}");
        let all = vec![gateway(&url(&store), &more).await, gateway(&url(&store), &more).await];
        Self { all, store: Some(store) }
    }

    async fn each() -> [Self; 2] {
        [Self::in_memory().await, Self::on_redis().await]
    }

    fn here(&self) -> &Stack {
        self.all.first().unwrap()
    }

    fn there(&self) -> &Stack {
        self.all.last().unwrap()
    }

    fn forwarded(&self) -> usize {
        self.all.iter().map(|stack| stack.upstream.requests().len()).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_connections_with_one_ticket_one_is_served() {
    for gateways in Gateways::each().await {
        let token = gateways.here().login("alice").await;
        let used = with("/required/a", &ticket(gateways.here(), &token, "/required/a").await);
        let requests = (0..50).map(|number| {
            let stack = &gateways.all[number % gateways.all.len()];
            stack.get(&used).send()
        });
        let mut statuses: Vec<_> = join_all(requests).await.iter().map(|one| one.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [vec![200], vec![401; 49]].concat());
        assert_eq!(gateways.forwarded(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_of_one_gateway_is_used_at_another_and_ends_with_its_session() {
    for gateways in Gateways::each().await {
        let (here, there) = (gateways.here(), gateways.there());
        let token = here.login("alice").await;
        let used = with("/required/a", &ticket(here, &token, "/required/a").await);
        assert_eq!(there.get(&used).forwarded().await.all("x-openid"), [openid("alice")]);
        assert_ended(&here.get(&used).send().await);

        let body = json!({ "path": "/required/a", "reuse": true });
        let used = with("/required/a", &ticket_with(here, &token, &body).await);
        for stack in [here, there, here] {
            assert_eq!(stack.get(&used).send().await.status, 200);
        }
        assert_eq!(there.post("/logout").token(&token).send().await.status, 204);
        until("the logout is known everywhere", async || {
            here.get("/required").token(&token).send().await.status == 401
        })
        .await;
        for stack in [here, there] {
            assert_ended(&stack.get(&used).send().await);
        }
        if let Some(store) = &gateways.store {
            // The URL's parameter is not the name of a key, and what is stored is sealed.
            let ticket = used.split('=').next_back().unwrap();
            assert!(store.keys().iter().all(|key| !key.contains(ticket)), "{:?}", store.keys());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_at_most_a_hundred_tickets_at_a_time() {
    for gateways in Gateways::each().await {
        let (here, there) = (gateways.here(), gateways.there());
        let [first, second, bob] =
            [here.login("alice").await, there.login("alice").await, here.login("bob").await];
        let body = json!({ "path": "/required/a" });
        let asked = (0..110).map(|number| {
            let (stack, token) = if number % 2 == 0 { (here, &first) } else { (there, &second) };
            ask(stack, token, &body)
        });
        let responses = join_all(asked).await;
        let made: Vec<_> = responses.iter().filter(|one| one.status == 200).collect();
        assert_eq!(made.len(), 100);
        for rejected in responses.iter().filter(|one| one.status != 200) {
            rejected.assert_error(429, "rate_limited", "retry");
            let after: u32 = rejected.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=30).contains(&after), "{after}");
        }
        assert_eq!(ask(here, &bob, &body).await.status, 200);
        // One that was used no longer counts.
        let used = made[0].json()["ticket"].as_str().unwrap().to_owned();
        let used = with("/required/a", &used);
        assert_eq!(here.get(&used).send().await.status, 200);
        assert_eq!(ask(there, &first, &body).await.status, 200);
        assert_eq!(ask(here, &second, &body).await.status, 429);
        gateways.all.iter().for_each(|stack| stack.clock.advance(Duration::from_secs(30)));
        assert_eq!(ask(there, &first, &body).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_ends_no_ticket() {
    let stack = Stack::start_with(&format!("{ON}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    let more = "[limits]\nmax_body = \"1MiB\"\n";
    assert!(stack.reload(&format!("{ON}{THREE_ROUTES}{more}")).await);
    assert_eq!(stack.get(&used).send().await.status, 200);
}
