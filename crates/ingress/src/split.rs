//! While two releases serve side by side: which of them a visitor gets.
//!
//! Every visitor has a place in a queue, worked out from what tells visitors apart and the candidate's number; a share is
//! the beginning of the queue. So nothing is remembered here, every thread and every proxy decides alike, who is in a
//! share is in every larger one, and the next deployment begins with other visitors. Whoever comes without a mark gets
//! one: its place is drawn such that of any hundred fresh visitors a share of 5 % is five.

use std::sync::atomic::{AtomicU64, Ordering};

use rung_model::appfile::rollout::Share;
use rung_model::routes::{Mark, Split, SplitBy};

use crate::fields::{cookie, header};

/// The cookie that tells visitors apart. It says nothing but a random number.
pub(crate) const COOKIE: &str = "rung-visitor";

/// A visitor's place, for one request and its retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lot {
    candidate: u64,
    place: u32,
    is_tester: bool,
    /// The visitor was not known before: the number to be told.
    pub(crate) fresh: Option<u64>,
}

impl Lot {
    pub(crate) fn is_of(&self, split: &Split) -> bool {
        self.candidate == split.candidate.0
    }

    pub(crate) fn gets_candidate(&self, split: &Split) -> bool {
        self.is_tester || self.place < split.share.0
    }
}

/// `head` is the request's, as it goes to the instance; `drawn` counts draws of the service.
pub(crate) fn draw(split: &Split, drawn: &AtomicU64, head: &[u8]) -> Lot {
    let candidate = split.candidate.0;
    let tested = split.testers.as_ref();
    let is_tester = tested.is_some_and(|testers| {
        let is = testers.is.as_deref().map(str::as_bytes);
        marked(head, &testers.mark).is_some_and(|value| is.is_none_or(|is| is == value))
    });
    let lot = |place, fresh| Lot { candidate, place, is_tester, fresh };
    let known = match &split.by {
        SplitBy::Request => return lot(next_place(drawn), None),
        SplitBy::Address => client(head),
        SplitBy::Mark(mark) => marked(head, mark).filter(|value| !value.is_empty()),
        SplitBy::Visitor => None,
    };
    let known = known.or_else(|| cookie(head, COOKIE).filter(|value| is_visitor(value)));
    match known {
        Some(known) => lot(place(known, candidate), None),
        None => {
            let visitor = fresh_visitor(split, next_place(drawn));
            lot(place(&spelled(visitor), candidate), Some(visitor))
        }
    }
}

/// Places that are evenly spread whatever the share is: multiples of the golden ratio.
fn next_place(drawn: &AtomicU64) -> u32 {
    let nth = drawn.fetch_add(1, Ordering::Relaxed);
    let spread = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    // Below 2^32 times 10,000: no bit is lost.
    ((spread * u64::from(Share::ALL.0)) >> 32) as u32
}

/// A number whose own place is on the same side of the share as the place that was drawn.
fn fresh_visitor(split: &Split, drawn: u32) -> u64 {
    let wanted = drawn < split.share.0;
    let fits = |visitor: u64| (place(&spelled(visitor), split.candidate.0) < split.share.0) == wanted;
    // With a share of 1 % every hundredth number fits; where none does it is the share that is left to chance.
    let mut visitor = fastrand::u64(..);
    for _ in 0..5000 {
        if fits(visitor) {
            break;
        }
        visitor = fastrand::u64(..);
    }
    visitor
}

/// As it stands in the cookie.
pub(crate) fn spelled(visitor: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|at| DIGITS[(visitor >> (60 - 4 * at)) as usize & 15])
}

fn is_visitor(value: &[u8]) -> bool {
    value.len() == 16 && value.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
}

/// Where somebody stands, from 0 to 9999.
fn place(known: &[u8], candidate: u64) -> u32 {
    let mixed = mix(known, candidate);
    (((mixed >> 32) * u64::from(Share::ALL.0)) >> 32) as u32
}

/// A number that stands for a text wherever it is worked out.
pub(crate) fn number_of(text: &str) -> u64 {
    mix(text.as_bytes(), 0)
}

fn mix(text: &[u8], with: u64) -> u64 {
    // FNV-1a, then the finalizer of SplitMix64, which spreads what FNV leaves in the low bits.
    let hash =
        text.iter().fold(0xcbf2_9ce4_8422_2325 ^ with.wrapping_mul(0x9e37_79b9_7f4a_7c15), |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn marked<'h>(head: &'h [u8], mark: &Mark) -> Option<&'h [u8]> {
    match mark {
        Mark::Header(name) => header(head, name),
        Mark::Cookie(name) => cookie(head, name),
    }
}

/// Whom the first of the proxies in front was talking to.
fn client(head: &[u8]) -> Option<&[u8]> {
    header(head, "x-forwarded-for")?.split(|byte| *byte == b',').next().map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use rung_model::DeploymentNumber;
    use rung_model::routes::Testers;

    use super::*;

    fn split(share: u32, by: SplitBy) -> Split {
        Split { candidate: DeploymentNumber(7), share: Share(share), by, testers: None }
    }

    fn head(lines: &str) -> Vec<u8> {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\nCookie: {COOKIE}=body").into_bytes()
    }

    #[test]
    fn of_ten_thousand_fresh_visitors_a_share_is_what_it_says() {
        for by in [SplitBy::Visitor, SplitBy::Request] {
            for share in [1, 50, 500, 2500, 5000, 9900] {
                let split = split(share, by.clone());
                let drawn = AtomicU64::new(fastrand::u64(..));
                let lots = (0..10_000).map(|_| draw(&split, &drawn, &head("")));
                let got = lots.filter(|lot| lot.gets_candidate(&split)).count();
                let off = got.abs_diff(share as usize);
                assert!(off <= 10, "a share of {share} in 10,000 was {got}, by {by:?}");
            }
        }
    }

    #[test]
    fn who_is_in_a_share_is_in_every_larger_one_and_stays_there() {
        let drawn = AtomicU64::new(0);
        let small = split(500, SplitBy::Visitor);
        let visitors: Vec<Lot> = (0..2000).map(|_| draw(&small, &drawn, &head(""))).collect();
        let again = |split: &Split, lot: &Lot| {
            let number = String::from_utf8(spelled(lot.fresh.unwrap()).into()).unwrap();
            draw(split, &drawn, &head(&format!("Cookie: a=b; {COOKIE}={number}\r\n")))
        };
        let large = split(2500, SplitBy::Visitor);
        let mut grown = 0;
        for lot in &visitors {
            let seen = again(&small, lot);
            assert_eq!((seen.place, seen.fresh), (lot.place, None), "a visitor that came back was not known");
            let in_large = again(&large, lot).gets_candidate(&large);
            assert!(in_large || !lot.gets_candidate(&small), "somebody fell out of a share that grew");
            grown += usize::from(in_large);
        }
        assert!((400..600).contains(&grown), "a quarter of 2000 visitors were {grown}");
        let next = Split { candidate: DeploymentNumber(8), ..small.clone() };
        let both = visitors
            .iter()
            .filter(|lot| lot.gets_candidate(&small) && again(&next, lot).gets_candidate(&next));
        assert!(both.count() < 30, "the same visitors are the first again and again");
    }

    #[test]
    fn visitors_are_told_by_what_the_file_says() {
        let drawn = AtomicU64::new(0);
        let by_user = split(5000, SplitBy::Mark(Mark::Header("X-User".into())));
        let lot = |split: &Split, lines: &str| draw(split, &drawn, &head(lines));
        let (ada, again) = (lot(&by_user, "x-user: ada\r\n"), lot(&by_user, "X-User:  ada \r\n"));
        assert_eq!(ada, again);
        assert!(
            ada.fresh.is_none() && lot(&by_user, "").fresh.is_some(),
            "without a mark a visitor gets the cookie"
        );
        let by_session = split(5000, SplitBy::Mark(Mark::Cookie("session".into())));
        assert_eq!(lot(&by_session, "Cookie: session=ada\r\n").place, ada.place);
        let by_address = split(5000, SplitBy::Address);
        let from = |address: &str| lot(&by_address, &format!("X-Forwarded-For: {address}\r\n")).place;
        assert_eq!(from("192.0.2.1, 10.0.0.1"), from("192.0.2.1"));
        assert_ne!(from("192.0.2.1"), from("192.0.2.2"));
    }

    #[test]
    fn testers_get_the_candidate_whatever_the_share_is() {
        let drawn = AtomicU64::new(0);
        let mark = Mark::Header("X-Beta".into());
        let mut split = split(0, SplitBy::Visitor);
        split.testers = Some(Testers { mark: mark.clone(), is: Some("on".into()) });
        let gets = |split: &Split, lines: &str| draw(split, &drawn, &head(lines)).gets_candidate(split);
        assert!(gets(&split, "X-Beta: on\r\n"));
        assert!(!gets(&split, "X-Beta: off\r\n") && !gets(&split, ""));
        split.testers = Some(Testers { mark, is: None });
        assert!(gets(&split, "X-Beta: whatever\r\n"));
    }

    #[test]
    fn what_stands_in_the_body_is_no_header() {
        assert_eq!(cookie(&head(""), COOKIE), None);
    }
}
