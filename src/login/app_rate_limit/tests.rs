//! Tests of the rate limit of one app.

use std::num::NonZeroU32;

use super::*;

fn rate_limit(count: u32) -> (AppRateLimit, Clock) {
    let clock = Clock::manual();
    let rate = Rate { count: NonZeroU32::new(count).unwrap(), period: Duration::from_secs(1) };
    (AppRateLimit::new(Some(rate), clock.clone()), clock)
}

/// Logins that pass in one second, after the bucket was emptied.
fn passes(rate_limit: &AppRateLimit, clock: &Clock) -> usize {
    while rate_limit.check().is_ok() {}
    let mut passed = 0;
    for _ in 0..1000 {
        clock.advance(Duration::from_millis(1));
        passed += usize::from(rate_limit.check().is_ok());
    }
    passed
}

#[test]
fn errcode_45011_halves_the_rate_for_a_minute() {
    let (rate_limit, clock) = rate_limit(160);
    assert!((159..=161).contains(&passes(&rate_limit, &clock)));
    rate_limit.slow();
    rate_limit.slow();
    let slowed = passes(&rate_limit, &clock);
    assert!((75..=81).contains(&slowed), "{slowed}");
    clock.advance(Duration::from_secs(60));
    assert!((159..=161).contains(&passes(&rate_limit, &clock)));
}

#[test]
fn the_next_process_continues_the_rate_as_it_is() {
    let (old, clock) = rate_limit(160);
    old.slow();
    let same = || AppRateLimit::new(old.rate, clock.clone());
    while old.check().is_ok() {}
    let new = same();
    new.import(old.export().as_bytes()).unwrap();
    new.check().unwrap_err();
    let slowed = passes(&new, &clock);
    assert!((79..=83).contains(&slowed), "{slowed}");
    old.pause();
    let new = same();
    new.import(old.export().as_bytes()).unwrap();
    assert!(matches!(new.admit_call(), Err(Rejection::WeChatBusy { .. })));
    clock.advance(QUOTA_PROBE);
    new.admit_call().unwrap();
    // Another rate begins anew, as after a reload.
    let rate = Rate { period: Duration::from_secs(2), ..old.rate.unwrap() };
    for rate in [Some(rate), None] {
        let other = AppRateLimit::new(rate, clock.clone());
        other.import(old.export().as_bytes()).unwrap();
        other.check().unwrap();
    }
    let exported = old.export();
    let cut = &exported.as_bytes()[..exported.as_bytes().len() - 1];
    assert_eq!(same().import(cut), Err(Malformed));
    assert_eq!(same().import(b""), Err(Malformed));
}

#[test]
fn repeated_45011_leaves_half_of_the_rate() {
    let (rate_limit, clock) = rate_limit(160);
    for _ in 0..20 {
        (0..100).for_each(|_| rate_limit.slow());
        clock.advance(Duration::from_secs(1));
    }
    let slowed = passes(&rate_limit, &clock);
    assert!((79..=83).contains(&slowed), "{slowed}");
}

#[test]
fn a_small_rate_is_slowed_as_well_as_a_large_one() {
    let (rate_limit, clock) = rate_limit(1);
    rate_limit.check().unwrap();
    rate_limit.slow();
    clock.advance(Duration::from_millis(1100));
    assert!(matches!(rate_limit.check(), Err(Rejection::RateLimited { .. })));
    clock.advance(Duration::from_secs(1));
    assert_eq!(rate_limit.check(), Ok(()));
}

#[test]
fn without_quota_wechat_is_called_once_a_minute() {
    let (rate_limit, clock) = rate_limit(1000);
    rate_limit.check().unwrap();
    rate_limit.admit_call().unwrap();
    rate_limit.pause();
    let assert_busy = |least: u32| {
        for outcome in [rate_limit.check(), rate_limit.admit_call()] {
            match outcome {
                // Random, so that phones do not all come back for the one call.
                Err(Rejection::WeChatBusy { retry_after }) => {
                    assert!((least..=least + 30).contains(&retry_after), "{retry_after}");
                }
                other => panic!("{other:?}"),
            }
        }
    };
    assert_busy(60);
    clock.advance(Duration::from_millis(59_500));
    assert_busy(1);
    clock.advance(Duration::from_millis(500));
    // Several logins may pass the check, but only the first to leave the queue calls WeChat.
    assert_eq!((rate_limit.check(), rate_limit.check()), (Ok(()), Ok(())));
    assert_eq!(rate_limit.admit_call(), Ok(()));
    assert_busy(60);
    rate_limit.resume();
    assert_eq!(
        (rate_limit.check(), rate_limit.admit_call(), rate_limit.admit_call()),
        (Ok(()), Ok(()), Ok(()))
    );
}

#[test]
fn an_app_without_a_rate_is_not_limited() {
    let rate_limit = AppRateLimit::new(None, Clock::manual());
    rate_limit.slow();
    for _ in 0..10_000 {
        rate_limit.check().unwrap();
    }
}

#[test]
fn logins_that_pass_in_one_of_two_processes_are_taken_from_the_bucket_of_the_other() {
    let (old, clock) = rate_limit(10);
    old.check().unwrap();
    assert!(old.take_uses().is_none(), "there is no other process");
    let new = AppRateLimit::new(old.rate, clock.clone());
    old.note_uses(true);
    new.import(old.export().as_bytes()).unwrap();
    let tell = |from: &AppRateLimit, to: &AppRateLimit| {
        let uses = from.take_uses().unwrap();
        to.add_uses(uses.as_bytes()).unwrap();
        assert!(from.take_uses().is_none());
        for length in 1..uses.as_bytes().len() {
            assert_eq!(to.add_uses(&uses.as_bytes()[..length]), Err(Malformed));
        }
    };
    let pass = |limit: &AppRateLimit| (0..100).take_while(|_| limit.check().is_ok()).count();
    (0..4).for_each(|_| old.check().unwrap());
    tell(&old, &new);
    new.note_uses(true);
    assert_eq!(pass(&new), 5);
    // What a process lets pass before the other one tells its uses is owed.
    assert_eq!(pass(&old), 5);
    tell(&old, &new);
    tell(&new, &old);
    clock.advance(Duration::from_millis(500));
    assert_eq!((pass(&old), pass(&new)), (0, 0));
    clock.advance(Duration::from_millis(200));
    assert_eq!(pass(&new), 2);
    // It owes one bucket at most.
    let mut much = Writer::new();
    much.u64(field::USES, u64::MAX);
    new.add_uses(much.as_bytes()).unwrap();
    new.add_uses(much.as_bytes()).unwrap();
    clock.advance(Duration::from_millis(1101));
    assert_eq!(pass(&new), 1);
}

/// A state as another process could give it.
fn state(bucket: f64, [filled_at, slowed_at, next_probe]: [u64; 3]) -> Writer {
    let mut writer = Writer::new();
    writer
        .u64(field::COUNT, 3)
        .u64(field::PERIOD, 1_000_000_000)
        .u64(field::BUCKET, bucket.to_bits())
        .u64(field::FILLED_AT, filled_at)
        .u64(field::SLOWED_AT, slowed_at)
        .u64(field::NEXT_PROBE, next_probe);
    writer
}

#[test]
fn a_wrong_clock_of_another_process_does_not_lock_an_app_out() {
    let times = [0, u64::MAX / 2, u64::MAX];
    for times in times
        .map(|filled| times.map(|slowed| times.map(|next| [filled, slowed, next])))
        .concat()
        .concat()
    {
        let (rate_limit, clock) = rate_limit(3);
        rate_limit.import(state(0.0, times).as_bytes()).unwrap();
        match rate_limit.check() {
            Ok(())
            | Err(
                Rejection::WeChatBusy { retry_after: ..=90 }
                | Rejection::RateLimited { retry_after: ..=3 },
            ) => {}
            other => panic!("{times:?}: {other:?}"),
        }
        clock.advance(QUOTA_PROBE);
        assert_eq!((rate_limit.check(), rate_limit.admit_call()), (Ok(()), Ok(())), "{times:?}");
    }
}

#[test]
fn an_impossible_bucket_of_another_process_is_malformed() {
    for bucket in [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN, -3.5, 3.5] {
        let (rate_limit, _) = rate_limit(3);
        assert_eq!(rate_limit.import(state(bucket, [0; 3]).as_bytes()), Err(Malformed));
        rate_limit.check().unwrap();
    }
}
