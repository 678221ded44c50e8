use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// How often each of `count` servers is chosen.
fn counts(count: usize, chosen: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut counts = vec![0; count];
    chosen.for_each(|server| counts[server] += 1);
    counts
}

fn period(weights: &[u16]) -> Vec<usize> {
    let rotation = Rotation::new(weights);
    let length = rotation.turns.len().max(weights.len());
    (0..length).map(|_| rotation.next().unwrap()).collect()
}

/// Servers with these weights, as [`hashed`] takes them.
fn servers(weights: &[u16]) -> Vec<(u64, u16)> {
    let address = |index| hash_of(&[format!("10.0.0.{index}:3000").as_bytes()]);
    weights.iter().enumerate().map(|(index, weight)| (address(index), *weight)).collect()
}

fn user(number: u64) -> u64 {
    hash_of(&[b"wx0123456789abcdef", format!("openid-{number}").as_bytes()])
}

#[test]
fn servers_of_equal_weight_take_turns() {
    assert_eq!(period(&[7, 7, 7]), [0, 1, 2]);
    let rotation = Rotation::new(&[3, 3]);
    assert!(rotation.turns.is_empty(), "no table is needed");
    assert_eq!(counts(2, (0..5).map_while(|_| rotation.next())), [3, 2]);
    assert_eq!(Rotation::new(&[]).next(), None);
    assert_eq!(counts(1, (0..3).map_while(|_| Rotation::new(&[9]).next())), [3]);
}

#[test]
fn a_heavy_server_does_not_get_its_share_in_a_burst() {
    assert_eq!(period(&[1, 3]), [0, 1, 1, 1]);
    assert_eq!(period(&[5, 1, 1]), [0, 0, 2, 0, 0, 1, 0]);
    let period = period(&[&[50][..], &[1; 50]].concat());
    let longest_run =
        |heavy| period.split(|server| (*server == 0) != heavy).map(<[usize]>::len).max().unwrap();
    assert!(longest_run(true) <= 3, "{period:?}");
    assert!(longest_run(false) <= 3, "{period:?}");
}

#[test]
fn weights_that_would_need_a_long_period_are_rounded() {
    let weights: Vec<u16> = (0..100).map(|index| 1000 - index).collect();
    let period = period(&weights);
    let sum: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
    for (count, weight) in counts(100, period.iter().copied()).iter().zip(&weights) {
        // In turns, times the sum of the weights.
        let exact = usize::from(*weight) * period.len();
        assert!((count * sum).abs_diff(exact) <= sum, "{count} for {weight}");
    }
    // The lightest server still has its turn.
    let turns =
        counts(9, self::period(&[1000, 999, 1000, 999, 1000, 999, 1000, 999, 1]).into_iter());
    assert_eq!(turns[8], 1);
    // More servers than turns.
    let many: Vec<u16> = (0..5000).map(|index| 1 + index % 2).collect();
    assert!(counts(5000, self::period(&many).into_iter()).iter().all(|turns| *turns >= 1));
}

#[test]
fn a_server_that_is_out_spreads_its_turns_over_all_others() {
    let rotation = Rotation::new(&[1; 4]);
    let without_first = |rotation: &Rotation| {
        (0..4).find_map(|_| rotation.next().filter(|server| *server != 0)).unwrap()
    };
    // A step to the neighbour would give server 1 two thirds of all requests.
    let chosen = counts(4, (0..3000).map(|_| without_first(&rotation)));
    assert_eq!(chosen, [0, 1000, 1000, 1000]);
}

#[test]
fn the_less_busy_of_two_different_servers_is_chosen() {
    assert_eq!(least_requests(0, |_| (0, 1)), None);
    assert_eq!(least_requests(1, |_| (9, 1)), Some(0));
    for _ in 0..1000 {
        // If both choices could be the same one, the busy server would be chosen at times.
        assert_eq!(least_requests(2, |server| (if server == 0 { 5 } else { 4 }, 1)), Some(1));
        // (5 + 1) / 3 is less than (2 + 1) / 1.
        assert_eq!(least_requests(2, |server| [(5, 3), (2, 1)][server]), Some(0));
        assert_ne!(
            least_requests(3, |server| (if server == 2 { usize::MAX } else { 0 }, 1)),
            Some(2)
        );
    }
}

#[test]
fn servers_that_are_equally_busy_are_chosen_equally_often() {
    let chosen = counts(5, (0..10_000).map_while(|_| least_requests(5, |_| (3, 2))));
    assert!(chosen.iter().all(|count| (1800..2200).contains(count)), "{chosen:?}");
}

#[test]
fn requests_in_flight_settle_by_weight() {
    let weights = [1, 3];
    let mut in_flight = [0; 2];
    for _ in 0..400 {
        in_flight[least_requests(2, |server| (in_flight[server], weights[server])).unwrap()] += 1;
    }
    assert_eq!(in_flight, [100, 300]);
}

#[test]
fn keys_are_spread_by_weight() {
    let weights = [1, 1, 2, 4];
    let servers = servers(&weights);
    let chosen = counts(
        4,
        (0..80_000).map_while(|number| hashed(user(number), servers.iter().copied().enumerate())),
    );
    for (count, weight) in chosen.iter().zip(weights) {
        let exact = 10_000 * usize::from(weight);
        assert!(count.abs_diff(exact) < exact / 20, "{chosen:?}");
    }
    assert_eq!(hashed(1, std::iter::empty::<(usize, (u64, u16))>()), None);
}

#[test]
fn random_servers_are_chosen_by_weight() {
    let chosen = counts(3, (0..10_000).map_while(|_| by_weight([1, 0, 4].into_iter())));
    assert!(chosen[1] == 0 && (1800..2200).contains(&chosen[0]), "{chosen:?}");
    assert_eq!(by_weight(std::iter::empty()), None);
}

#[test]
fn the_hash_never_changes() {
    // Gateways of different versions must agree.
    assert_eq!(hash_of(&[]), 0xefd0_1f60_ba99_2926);
    assert_eq!(hash_of(&[b"wx0123456789abcdef", b"openid-1"]), user(1));
    let servers = servers(&[1, 1, 2, 4]);
    let chosen: Vec<_> = (0..16)
        .map_while(|number| hashed(user(number), servers.iter().copied().enumerate()))
        .collect();
    assert_eq!(chosen, [3, 3, 1, 2, 3, 3, 2, 3, 3, 2, 2, 3, 3, 3, 3, 0]);
    assert_ne!(hash_of(&[b"ab", b"c"]), hash_of(&[b"a", b"bc"]));
    assert_ne!(hash_of(&[b"", b"a"]), hash_of(&[b"a", b""]));
}

proptest! {
    #[test]
    fn each_server_has_exactly_its_weight_in_each_period(weights in vec(1u16..=60, 1..40)) {
        let rotation = Rotation::new(&weights);
        let sum: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
        let exact: Vec<_> = weights.iter().map(|weight| 2 * usize::from(*weight)).collect();
        prop_assert_eq!(counts(weights.len(), (0..2 * sum).map_while(|_| rotation.next())), exact);
    }

    #[test]
    fn no_server_waits_much_longer_than_its_share(weights in vec(1u16..=60, 2..40)) {
        let period = period(&weights);
        let twice: Vec<_> = [&period[..], &period[..]].concat();
        for (server, weight) in weights.iter().enumerate() {
            let turns: Vec<_> = (0..twice.len()).filter(|turn| twice[*turn] == server).collect();
            let sum: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
            let most = sum / usize::from(*weight) + weights.len();
            prop_assert!(turns.windows(2).all(|pair| pair[1] - pair[0] <= most));
        }
    }

    #[test]
    fn a_server_that_leaves_moves_only_its_own_keys(
        weights in vec(1u16..=9, 2..20),
        gone in any::<prop::sample::Index>(),
    ) {
        let servers = servers(&weights);
        let gone = gone.index(servers.len());
        let address = |servers: &[(u64, u16)], key| {
            let found = hashed(key, servers.iter().copied().enumerate());
            found.map(|index| servers[index].0)
        };
        let mut left = servers.clone();
        left.remove(gone);
        // Other gateways may know the servers in another order.
        left.reverse();
        let mut moved: HashMap<u64, usize> = HashMap::new();
        for number in 0..500 {
            let before = address(&servers, user(number)).unwrap();
            let after = address(&left, user(number)).unwrap();
            if before == servers[gone].0 {
                *moved.entry(after).or_default() += 1;
            } else {
                prop_assert_eq!(before, after);
            }
        }
        // They go to all others, not to one.
        let all_moved: usize = moved.values().sum();
        if left.len() > 3 && all_moved >= 40 {
            prop_assert!(moved.len() > 1);
        }
    }
}
