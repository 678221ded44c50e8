//! What responds to the requests of a route: an upstream, or the gateway itself.
//!
//! If shares of the users go to other upstreams, a user always goes to the same one. It is chosen
//! by a digest of the identity, which is not stored and does not change with a restart. A share
//! that grows keeps the users that it had, if the shares listed before it stay the same.

use http::header::CONTENT_TYPE;
use sha2::{Digest, Sha256};

use super::edit::Edits;
use crate::config;
use crate::config::StaticResponse;
use crate::identity::Identity;
use crate::message::own_response::OwnResponse;

pub enum RouteTarget {
    Service { main: usize, shares: Vec<config::Share> },
    OwnResponse(OwnResponse),
    ForwardAuthOnly,
}

impl RouteTarget {
    pub fn new(target: &config::Target, edits: &Edits) -> Self {
        match target {
            config::Target::Service { upstream, split } => {
                Self::Service { main: *upstream, shares: split.clone() }
            }
            config::Target::OwnResponse(response) => Self::OwnResponse(prepared(response, edits)),
            config::Target::ForwardAuthOnly => Self::ForwardAuthOnly,
        }
    }
}

fn prepared(section: &StaticResponse, edits: &Edits) -> OwnResponse {
    let mut response = OwnResponse::empty(section.status);
    if !section.body.is_empty() {
        response.header(CONTENT_TYPE, section.content_type.clone());
        response.body.clone_from(&section.body);
    }
    edits.apply_to_own_response(&mut response);
    response
}

/// The upstream for a user; requests without a user go to the main upstream.
pub fn pool_for(
    route: &str,
    main: usize,
    shares: &[config::Share],
    identity: Option<&Identity>,
) -> usize {
    let Some(identity) = identity.filter(|_| !shares.is_empty()) else { return main };
    let mut position = position(route, identity);
    for share in shares {
        match position.checked_sub(share.users) {
            Some(beyond) => position = beyond,
            None => return share.upstream,
        }
    }
    main
}

/// The position of a user among 10,000. It depends on the route, so that it is not always the same
/// users who are moved first.
fn position(route: &str, identity: &Identity) -> u16 {
    let mut digest = Sha256::new();
    for part in [route, identity.app_id.as_str(), identity.openid.as_str()] {
        // The separator occurs in none of the parts.
        digest.update(part);
        digest.update([0]);
    }
    let [first, second, third, fourth, ..] = <[u8; 32]>::from(digest.finalize());
    let number = u32::from_be_bytes([first, second, third, fourth]);
    u16::try_from(number % 10_000).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Share;
    use crate::identity::{AppId, OpenId};

    fn user(number: usize) -> Identity {
        Identity {
            app_id: AppId::parse("wx0123456789abcdef").unwrap(),
            openid: OpenId::parse(&format!("oGZUI0egBJY1zhBYw2Khd{number:07}")).unwrap(),
            unionid: None,
            user_id: None,
        }
    }

    fn users_of(pool: usize, shares: &[Share]) -> Vec<usize> {
        let pool_of = |number: &usize| pool_for("shop", 0, shares, Some(&user(*number)));
        (0..10_000).filter(|number| pool_of(number) == pool).collect()
    }

    #[test]
    fn a_share_has_its_number_of_users_and_keeps_them_as_it_grows() {
        let five = users_of(1, &[Share { upstream: 1, users: 500 }]);
        assert!((400..600).contains(&five.len()), "{}", five.len());
        let ten = users_of(1, &[Share { upstream: 1, users: 1000 }]);
        assert!((850..1150).contains(&ten.len()), "{}", ten.len());
        assert!(five.iter().all(|user| ten.contains(user)));
        let both = [Share { upstream: 1, users: 500 }, Share { upstream: 2, users: 9500 }];
        assert_eq!(users_of(1, &both), five);
        assert_eq!(users_of(0, &both), [0; 0]);
        assert_eq!(users_of(1, &[Share { upstream: 1, users: 0 }]), [0; 0]);
    }

    /// A change here would move users of running gateways to other upstreams.
    #[test]
    fn a_users_position_is_always_the_same() {
        assert_eq!([1, 2, 3].map(|number| position("shop", &user(number))), [4101, 6649, 2711]);
    }

    #[test]
    fn requests_without_a_user_go_to_the_main_pool() {
        let all = [Share { upstream: 1, users: 10_000 }];
        assert_eq!(pool_for("shop", 0, &all, None), 0);
        assert_eq!(pool_for("shop", 0, &all, Some(&user(1))), 1);
    }
}
