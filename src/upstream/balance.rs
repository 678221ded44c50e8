//! Which server of a list is next: in turn, the less busy of two random ones, or by a hash.
//!
//! These functions know weights and numbers only. The caller decides which servers are in use. The
//! share of a server that is out must go to all others, not to its neighbour: so the caller takes
//! the next turn of a [`Rotation`], and leaves the server out before it calls the other functions.

use std::sync::atomic::{AtomicUsize, Ordering};

use rand::RngExt;

/// The most turns of one period. Weights that need more are rounded.
const MOST_TURNS: u64 = 4096;

/// Servers in turn, each as often as its weight says.
#[derive(Default)]
pub struct Rotation {
    count: usize,
    /// The indices of one period. Empty if all weights are equal.
    turns: Box<[usize]>,
    next: AtomicUsize,
}

impl Rotation {
    /// The rotation of as many servers as there are weights.
    pub fn new(weights: &[u16]) -> Self {
        let all_equal = weights.windows(2).all(|pair| pair.first() == pair.last());
        let turns = if all_equal { Vec::new() } else { turns(weights) };
        Self { count: weights.len(), turns: turns.into(), next: AtomicUsize::new(0) }
    }

    /// The index of the server whose turn it is. `None`: there are no servers.
    pub fn next(&self) -> Option<usize> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if self.turns.is_empty() {
            return turn.checked_rem(self.count);
        }
        self.turns.get(turn % self.turns.len()).copied()
    }
}

/// One period of a rotation.
///
/// The turns of a server are spread evenly over the period, each server's with an offset of its
/// own, so that a server never gets its share in a burst, and servers of the same weight do not
/// have their turns at the same time. (nginx's algorithm does the same, but takes a step over all
/// servers for each turn.)
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "turns are few, and offsets lie between 0 and 1"
)]
fn turns(weights: &[u16]) -> Vec<usize> {
    // The fractional part of the golden ratio: its multiples, modulo 1, are spread evenly.
    const OFFSET: f64 = 0.618_033_988_749_894_9;
    let divisor = weights.iter().fold(0, |divisor, weight| common_divisor(divisor, *weight));
    let weights = weights.iter().map(|weight| u64::from((*weight).max(1) / divisor.max(1)));
    let sum: u64 = weights.clone().sum();
    let most = MOST_TURNS.max(weights.len() as u64);
    let mut turns: Vec<(f64, usize)> = Vec::new();
    for (server, weight) in weights.enumerate() {
        let weight = if sum > most {
            ((weight as f64 * most as f64 / sum as f64).round() as u64).max(1)
        } else {
            weight
        };
        let offset = (server as f64 * OFFSET).fract();
        turns.extend((0..weight).map(|turn| ((turn as f64 + offset) / weight as f64, server)));
    }
    turns.sort_by(|one, other| one.0.total_cmp(&other.0));
    turns.into_iter().map(|(_, server)| server).collect()
}

fn common_divisor(one: u16, other: u16) -> u16 {
    if other == 0 { one } else { common_divisor(other, one % other) }
}

/// Chooses two different random servers out of `count`, and returns the index of the one with the
/// smaller (requests in flight + 1) / weight. `load` returns these two numbers of a server. `None`:
/// there are no servers.
///
/// Two choices are nearly as good as the best of all, and, unlike the best of all, do not send
/// every gateway to the same server at once (Mitzenmacher, "The Power of Two Choices in Randomized
/// Load Balancing").
pub fn least_requests(count: usize, load: impl Fn(usize) -> (usize, u16)) -> Option<usize> {
    if count < 2 {
        return (count == 1).then_some(0);
    }
    let (one, other) = two_of(count);
    let (in_flight, weight) = load(one);
    let (other_in_flight, other_weight) = load(other);
    // Both fractions, multiplied by both weights.
    let scaled = |in_flight: usize, weight: u16| (in_flight as u128 + 1) * u128::from(weight);
    let other_is_better = scaled(other_in_flight, weight) < scaled(in_flight, other_weight);
    Some(if other_is_better { other } else { one })
}

/// A random server, each as likely as its weight says. `None`: there are no servers.
pub fn by_weight(weights: impl Iterator<Item = u16> + Clone) -> Option<usize> {
    let sum: u64 = weights.clone().map(u64::from).sum();
    let mut left = if sum == 0 { return None } else { rand::rng().random_range(0..sum) };
    for (index, weight) in weights.enumerate() {
        left = match left.checked_sub(weight.into()) {
            Some(left) => left,
            None => return Some(index),
        };
    }
    None
}

/// Two different numbers below `count`, which is at least 2. Each pair, in each order, is as likely
/// as every other.
fn two_of(count: usize) -> (usize, usize) {
    let mut random = rand::rng();
    let one = random.random_range(0..count);
    let other = random.random_range(0..count - 1);
    (one, if other < one { other } else { other + 1 })
}

/// The server of a key: the one with the highest score. `servers` have the hash of their address
/// ([`hash_of`]) and their weight. `None`: there are no servers.
///
/// This is weighted rendezvous hashing: the score of a server depends on the key and on this server
/// alone, so a server that leaves moves its own keys only, to all others by weight, and gateways
/// that know the same servers agree, in whatever order they know them.
pub fn hashed<T>(key: u64, servers: impl Iterator<Item = (T, (u64, u16))>) -> Option<T> {
    let scored = servers.map(|(server, (hash, weight))| (server, (mix(key ^ hash), weight)));
    let best = scored.reduce(|best, next| if is_higher(next.1, best.1) { next } else { best });
    best.map(|(server, _)| server)
}

/// Whether one server scores higher than another, by their mixed hashes and their weights.
fn is_higher((one, weight): (u64, u16), (other, other_weight): (u64, u16)) -> bool {
    // A logarithm for each server of each request is saved where it changes nothing.
    if weight == other_weight {
        one > other
    } else {
        score(one, weight) > score(other, other_weight)
    }
}

#[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
fn score(hash: u64, weight: u16) -> f64 {
    const STEPS: f64 = (1u64 << 53) as f64;
    let fraction = ((hash >> 11) as f64 + 0.5) / STEPS;
    -f64::from(weight) / fraction.ln()
}

/// A hash of several values in order: FNV-1a, 64 bits, mixed once more at the end, because its high
/// bits are weak for short values.
///
/// It is the same in every process, version and machine, so that several gateways send a user to
/// the same server. A client that can choose a value can choose the server; no hash prevents that.
pub fn hash_of(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut write = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for part in parts {
        // Otherwise "ab", "c" and "a", "bc" would have the same hash.
        write(&(part.len() as u64).to_le_bytes());
        write(part);
    }
    mix(hash)
}

/// Every bit of the input changes each bit of the output with a probability of one half: the
/// finalizer of `MurmurHash3`, which maps no two inputs to one output.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
