//! What has an end: times, rooms and places.

use super::*;

#[test]
fn what_comes_back_past_its_time_is_not_given_out_again() {
    const TTL: Duration = Duration::from_secs(10);
    let mut pair = Pair::new();
    pair.connect();
    let ids = ["a", "b"].map(|about| pair.send_for(about, b"1", TTL));
    pair.run();
    assert_eq!(pair.take("a").len() + pair.take("b").len(), 2);
    // The word that they have expired does not get through.
    pair.pass(TTL + Duration::from_secs(1));
    let now = pair.now.mono;
    assert_eq!(pair.sides[1].mail.returned(&[(node(0), ids[0])], now), 1);
    assert_eq!(pair.take("*"), []);
    pair.sides[1].mail.give_back(1, now);
    assert_eq!(pair.take("*"), []);
    assert_eq!((pair.sides[1].count("message_stale"), pair.sides[1].mail.inbox().bytes()), (2, 0));
}
