//! The list of servers of a pool: their weights, and which of them is preferred for an attempt.

use std::sync::Arc;

use super::balance::{Rotation, by_weight, hash_of, hashed, least_requests};
use super::server::Server;
use crate::config::Balance;

/// Servers that are known at one time. A change makes a new list.
#[derive(Default)]
pub struct Servers {
    list: Vec<Member>,
    rotation: Rotation,
}

/// A server in a list.
struct Member {
    server: Arc<Server>,
    weight: u16,
    /// Of the address, so that all gateways that know the server agree.
    hash: u64,
}

impl Servers {
    /// The list of these servers with their weights. A server that is listed twice counts once.
    pub fn new(servers: impl IntoIterator<Item = (Arc<Server>, u16)>) -> Self {
        let mut list: Vec<Member> = Vec::new();
        for (server, weight) in servers {
            if list.iter().all(|other| !Arc::ptr_eq(&other.server, &server)) {
                let hash = hash_of(&[server.address.to_string().as_bytes()]);
                list.push(Member { server, weight, hash });
            }
        }
        let weights: Vec<u16> = list.iter().map(|member| member.weight).collect();
        Self { rotation: Rotation::new(&weights), list }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.list.iter().map(|member| &member.server)
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether both lists have the same servers with the same weights, in the same order.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(one, other): (&Member, &Member)| {
            Arc::ptr_eq(&one.server, &other.server) && one.weight == other.weight
        };
        self.len() == other.len() && self.list.iter().zip(&other.list).all(same)
    }

    /// The preferred server among those that `may_be` accepts. `key` is what [`Balance::Hash`]
    /// hashes.
    pub fn pick(
        &self,
        balance: &Balance,
        key: u64,
        may_be: impl Fn(&Arc<Server>) -> bool,
    ) -> Option<&Arc<Server>> {
        let server = |member: &'_ Member| may_be(&member.server);
        match balance {
            Balance::RoundRobin => self.in_turn(server),
            Balance::LeastRequests => self.less_busy(server),
            Balance::Hash(_) => {
                // Each is checked once, because its state may change meanwhile.
                let accepted = self.list.iter().filter(|member| server(member));
                hashed(key, accepted.map(|member| (member, (member.hash, member.weight))))
            }
        }
        .map(|member| &member.server)
    }

    fn in_turn(&self, may_be: impl Fn(&Member) -> bool) -> Option<&Member> {
        // Its neighbour does not take the turn of a server that is out: the next turn is taken, and
        // where that is not enough, a random one.
        for _ in 0..2 * self.len() {
            let member = self.list.get(self.rotation.next()?)?;
            if may_be(member) {
                return Some(member);
            }
        }
        let accepted: Vec<&Member> = self.list.iter().filter(|member| may_be(member)).collect();
        let weights = accepted.iter().map(|member| member.weight);
        accepted.get(by_weight(weights)?).copied()
    }

    fn less_busy(&self, may_be: impl Fn(&Member) -> bool) -> Option<&Member> {
        let load = |member: &Member| (member.server.in_flight(), member.weight);
        if self.list.iter().all(&may_be) {
            let load = |index| self.list.get(index).map_or((usize::MAX, 1), load);
            return self.list.get(least_requests(self.len(), load)?);
        }
        let accepted: Vec<&Member> = self.list.iter().filter(|member| may_be(member)).collect();
        let of_accepted =
            |index: usize| accepted.get(index).map_or((usize::MAX, 1), |member| load(member));
        accepted.get(least_requests(accepted.len(), of_accepted)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HashKey, ServerAddress};
    use crate::upstream::server::{Address, Lease};

    fn servers(weights: &[u16]) -> Servers {
        Servers::new(weights.iter().enumerate().map(|(index, weight)| {
            let address = ServerAddress::Unix(format!("/run/{index}.sock").into());
            let ServerAddress::Unix(path) = &address else { unreachable!() };
            let server =
                Server::new(Address::Unix(path.as_path().into()), &address, Arc::default());
            (Arc::new(server.unwrap()), *weight)
        }))
    }

    /// How often each server is picked in `times` requests; those in `out` may not be.
    fn picked(servers: &Servers, balance: &Balance, times: u64, out: &[usize]) -> Vec<usize> {
        let index = |server: &Arc<Server>| {
            servers.iter().position(|other| Arc::ptr_eq(other, server)).unwrap()
        };
        let mut counts = vec![0; servers.len()];
        for number in 0..times {
            let key = hash_of(&[&number.to_le_bytes()]);
            let may_be = |server: &Arc<Server>| !out.contains(&index(server));
            counts[index(servers.pick(balance, key, may_be).unwrap())] += 1;
        }
        counts
    }

    fn balances() -> [Balance; 3] {
        [Balance::RoundRobin, Balance::LeastRequests, Balance::Hash(HashKey::User)]
    }

    #[test]
    fn a_server_that_is_out_spreads_its_share_over_all_others() {
        for balance in balances() {
            let counts = picked(&servers(&[1; 4]), &balance, 6000, &[1]);
            assert_eq!(counts[1], 0);
            let others = [counts[0], counts[2], counts[3]];
            assert!(others.iter().all(|count| (1800..2200).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn the_share_of_a_heavy_server_that_is_out_is_spread_by_weight() {
        for balance in [Balance::RoundRobin, Balance::Hash(HashKey::Address)] {
            let counts = picked(&servers(&[1000, 1, 3]), &balance, 4000, &[0]);
            assert_eq!(counts[0], 0);
            assert!((2800..3200).contains(&counts[2]), "{balance:?}: {counts:?}");
        }
    }

    #[test]
    fn none_is_picked_if_none_may_be() {
        for balance in balances() {
            assert!(servers(&[1, 2]).pick(&balance, 7, |_| false).is_none());
            assert!(servers(&[]).pick(&balance, 7, |_| true).is_none());
        }
    }

    #[test]
    fn a_server_that_leaves_while_one_is_picked_leaves_the_others() {
        for balance in balances() {
            let asked = std::cell::Cell::new(0);
            // From its second question on, the first one is out.
            let servers = servers(&[1, 1, 1]);
            let first = servers.iter().next().unwrap().clone();
            for key in 0..100 {
                asked.set(0);
                let may_be = |server: &Arc<Server>| {
                    let is_first = Arc::ptr_eq(server, &first);
                    asked.set(asked.get() + usize::from(is_first));
                    !is_first || asked.get() == 1
                };
                assert!(servers.pick(&balance, hash_of(&[&[key]]), may_be).is_some());
            }
        }
    }

    #[test]
    fn requests_in_flight_are_counted_without_idle_connections() {
        let servers = servers(&[1, 1]);
        let all: Vec<_> = servers.iter().cloned().collect();
        let mut leases: Vec<_> = (0..3).map(|_| Lease::new(all[0].clone())).collect();
        assert_eq!(picked(&servers, &Balance::LeastRequests, 100, &[]), [0, 100]);
        for lease in &mut leases {
            lease.set_idle(true);
        }
        let _one = Lease::new(all[1].clone());
        assert_eq!(picked(&servers, &Balance::LeastRequests, 100, &[]), [100, 0]);
    }

    #[test]
    fn a_list_is_the_same_if_nothing_changed() {
        let one = servers(&[1, 2]);
        let weighted = |weights: [u16; 2]| Servers::new(one.iter().cloned().zip(weights));
        assert!(one.is_same(&weighted([1, 2])));
        assert!(!one.is_same(&weighted([2, 1])));
        assert!(!one.is_same(&servers(&[1, 2])), "other servers");
        assert!(!one.is_same(&Servers::default()));
        let twice = one.iter().chain(one.iter()).map(|server| (server.clone(), 5));
        assert_eq!(Servers::new(twice).len(), 2);
    }
}
