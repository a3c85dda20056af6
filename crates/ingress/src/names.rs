//! Names of services for whoever asks by DNS: `api.shop.internal` at 127.64.0.1, port 53.
//!
//! Instances have the names that they may call in their `/etc/hosts`, which nearly every program reads. This is for those
//! that only speak DNS (nginx's `resolver`, `dig`) and for the machine's own resolver, which can be told to ask here for
//! `internal`. Whoever asks is not known: a name is an address, and the call to it is judged when it is made.
//!
//! Deliberately not a resolver of anything else: a question for another name is refused, so that whoever asks turns to the
//! machine's own resolvers. Answers are one record, so they always fit a datagram and TCP is not spoken.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rung_model::address::DOMAIN;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::table::Table;

/// Questions are far shorter; of a longer one the beginning is enough.
const QUESTION_MAX: usize = 1500;
/// An address stays its service's for the life of the app; this is about names whose app is destroyed.
const TTL_S: u32 = 5;
/// After a failure of the socket, which nobody expects.
const PAUSE: Duration = Duration::from_millis(100);

/// Of RFC 1035.
const HEADER: usize = 12;
const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 255;
const IN: u16 = 1;
const A: u16 = 1;
const ANY: u16 = 255;
const IS_ANSWER: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const RECURSION_DESIRED: u16 = 0x0100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Outcome {
    Fine = 0,
    Malformed = 1,
    NoSuchName = 3,
    NotUnderstood = 4,
    Refused = 5,
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Service(Ipv4Addr),
    /// Others end with it: `shop.internal`.
    Above,
    Nothing,
}

/// Answers until it is dropped.
pub(crate) async fn serve(socket: UdpSocket, tables: watch::Receiver<Arc<Table>>) {
    let mut bytes = [0; QUESTION_MAX];
    loop {
        let answered = match socket.recv_from(&mut bytes).await {
            Ok((length, from)) => {
                let table = tables.borrow().clone();
                match answer(&bytes[..length], |name| table.known(name)) {
                    Some(answer) => socket.send_to(&answer, from).await.map(drop),
                    None => Ok(()),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "answering who asked for a name");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

struct Question<'a> {
    /// In lower case, with dots between.
    name: String,
    kind: u16,
    class: u16,
    /// As it was asked.
    bytes: &'a [u8],
}

/// `None`: it is no question.
fn answer(message: &[u8], known: impl Fn(&str) -> Known) -> Option<Vec<u8>> {
    let flags = number(message, 2).filter(|flags| message.len() >= HEADER && flags & IS_ANSWER == 0)?;
    if flags & OPCODE != 0 {
        return Some(say(message, flags, Outcome::NotUnderstood, None, None));
    }
    let question = if number(message, 4) == Some(1) { question(message) } else { None };
    let Some(question) = question else {
        return Some(say(message, flags, Outcome::Malformed, None, None));
    };
    let (outcome, address) = match known(&question.name) {
        _ if !is_ours(&question.name) || question.class != IN => (Outcome::Refused, None),
        Known::Service(address) if matches!(question.kind, A | ANY) => (Outcome::Fine, Some(address)),
        // It is there, and has no record of this kind: no address of IPv6, say.
        Known::Service(_) | Known::Above => (Outcome::Fine, None),
        Known::Nothing if question.name == DOMAIN => (Outcome::Fine, None),
        Known::Nothing => (Outcome::NoSuchName, None),
    };
    Some(say(message, flags, outcome, Some(question.bytes), address))
}

fn is_ours(name: &str) -> bool {
    name.strip_suffix(DOMAIN).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().expect("it is two bytes")))
}

/// `None`: it can't be read. A question is never compressed.
fn question(message: &[u8]) -> Option<Question<'_>> {
    let (mut at, mut name) = (HEADER, String::new());
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = message.get(at..at + length).filter(|_| length <= LABEL_MAX)?;
        at += length;
        if !name.is_empty() {
            name.push('.');
        }
        // A dot within a label is none between two.
        name.extend(label.iter().map(|byte| match byte.to_ascii_lowercase() {
            b'.' => '?',
            byte => char::from(byte),
        }));
        if at - HEADER > NAME_MAX {
            return None;
        }
    }
    let (kind, class) = (number(message, at)?, number(message, at + 2)?);
    Some(Question { name, kind, class, bytes: &message[HEADER..at + 4] })
}

fn say(
    message: &[u8],
    flags: u16,
    outcome: Outcome,
    question: Option<&[u8]>,
    address: Option<Ipv4Addr>,
) -> Vec<u8> {
    let mut said = Vec::with_capacity(HEADER + NAME_MAX + 20);
    said.extend_from_slice(&message[..2]);
    let ours = if matches!(outcome, Outcome::Fine | Outcome::NoSuchName) { AUTHORITATIVE } else { 0 };
    let flags = IS_ANSWER | (flags & (OPCODE | RECURSION_DESIRED)) | ours | outcome as u16;
    said.extend_from_slice(&flags.to_be_bytes());
    for count in [u16::from(question.is_some()), u16::from(address.is_some()), 0, 0] {
        said.extend_from_slice(&count.to_be_bytes());
    }
    said.extend_from_slice(question.unwrap_or_default());
    if let Some(address) = address {
        // The name is where the question has it.
        said.extend_from_slice(&[0xc0, HEADER as u8]);
        said.extend_from_slice(&A.to_be_bytes());
        said.extend_from_slice(&IN.to_be_bytes());
        said.extend_from_slice(&TTL_S.to_be_bytes());
        said.extend_from_slice(&4_u16.to_be_bytes());
        said.extend_from_slice(&address.octets());
    }
    said
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const API: Ipv4Addr = Ipv4Addr::new(127, 98, 60, 129);

    fn known(name: &str) -> Known {
        match name {
            "api.shop.internal" => Known::Service(API),
            "shop.internal" => Known::Above,
            _ => Known::Nothing,
        }
    }

    fn asked(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&IN.to_be_bytes());
        message
    }

    /// Its outcome, whether it is authoritative, and the address.
    fn read(answer: &[u8]) -> (u16, bool, Option<Ipv4Addr>) {
        let flags = number(answer, 2).unwrap();
        let address = (number(answer, 6) == Some(1)).then(|| {
            let last: [u8; 4] = answer[answer.len() - 4..].try_into().unwrap();
            Ipv4Addr::from(last)
        });
        (flags & 0xf, flags & AUTHORITATIVE != 0, address)
    }

    #[test]
    fn names_of_services_are_answered_and_all_others_refused() {
        const AAAA: u16 = 28;
        for (name, kind, expected) in [
            ("api.shop.internal", A, (0, true, Some(API))),
            ("API.Shop.INTERNAL", A, (0, true, Some(API))),
            ("api.shop.internal", ANY, (0, true, Some(API))),
            ("api.shop.internal", AAAA, (0, true, None)),
            ("shop.internal", A, (0, true, None)),
            ("internal", A, (0, true, None)),
            ("nobody.shop.internal", A, (3, true, None)),
            ("example.com", A, (5, false, None)),
            ("notinternal", A, (5, false, None)),
        ] {
            let answer = answer(&asked(name, kind), known).expect("it is a question");
            assert_eq!(read(&answer), expected, "{name} {kind}");
            assert_eq!(answer[..2], [0xab, 0xcd], "whose answer it is");
            let question = &asked(name, kind)[HEADER..];
            assert_eq!(&answer[HEADER..HEADER + question.len()], question, "it is said as it was asked");
        }
    }

    #[test]
    fn what_is_no_question_is_not_answered_or_called_malformed() {
        assert_eq!(answer(&[0; 11], known), None, "shorter than a head");
        let mut reply = asked("api.shop.internal", A);
        reply[2] |= 0x80;
        assert_eq!(answer(&reply, known), None, "answers to answers would never end");
        let outcome = |message: &[u8]| read(&answer(message, known).unwrap()).0;
        let mut update = asked("api.shop.internal", A);
        update[2] |= 0x28;
        assert_eq!(outcome(&update), 4, "only questions are understood");
        let mut two = asked("api.shop.internal", A);
        two[5] = 2;
        assert_eq!(outcome(&two), 1);
        let mut compressed = asked("api.shop.internal", A);
        compressed[HEADER] = 0xc0;
        assert_eq!(outcome(&compressed), 1);
        let dotted = asked("api#shop.internal", A)
            .iter()
            .map(|b| if *b == b'#' { b'.' } else { *b })
            .collect::<Vec<_>>();
        assert_eq!(outcome(&dotted), 3, "a dot within a label made another name of it");
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_does_harm(message in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(answer) = answer(&message, known) {
                prop_assert!(answer.len() <= message.len() + 16, "an answer is never much longer than its question");
            }
        }
    }
}
