//! The writing side.

use super::super::frame::{flag, kind};
use super::super::{ErrorCode, Outbound, WireError, WriteAction};
use super::CHALLENGE;
use super::encoder::frame;

fn settings() -> Vec<u8> {
    // MAX_CONCURRENT_STREAMS 200, MAX_FRAME_SIZE 16384, MAX_HEADER_LIST_SIZE 16384.
    frame(kind::SETTINGS, 0, 0, b"\0\x03\0\0\0\xc8\0\x05\0\0\x40\0\0\x06\0\0\x40\0")
}

fn ping() -> Vec<u8> {
    frame(kind::PING, 0, 0, &CHALLENGE)
}

/// A connection whose challenge is out.
fn open() -> Outbound {
    let mut outbound = Outbound::new(CHALLENGE);
    assert_eq!(outbound.accept(&settings()), Ok(WriteAction::Taken(settings().len())));
    outbound.wrote_pending(outbound.pending().len());
    outbound
}

#[test]
fn the_challenge_leaves_in_one_piece_with_the_first_settings() {
    let bytes = [settings(), frame(0x8, 0, 0, b"\0\0\xff\xff")].concat();
    for cut in 1..bytes.len() {
        let mut outbound = Outbound::new(CHALLENGE);
        let mut taken = 0;
        while outbound.pending().is_empty() {
            let end = if taken < cut { cut } else { bytes.len() };
            match outbound.accept(&bytes[taken..end]) {
                Ok(WriteAction::Taken(count)) if count > 0 => taken += count,
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
        assert_eq!(taken, settings().len(), "cut at {cut}");
        assert_eq!(outbound.pending(), [settings(), ping()].concat());
        assert!(!outbound.challenge_sent());
        assert_eq!(outbound.accept(&bytes[taken..]), Ok(WriteAction::FlushFirst));
    }
}

#[test]
fn the_challenge_is_sent_only_when_the_socket_has_taken_all_of_it() {
    let mut outbound = Outbound::new(CHALLENGE);
    assert_eq!(outbound.accept(&settings()), Ok(WriteAction::Taken(settings().len())));
    let all = outbound.pending().len();
    for left in (1..all).rev() {
        outbound.wrote_pending(1);
        assert_eq!(outbound.pending().len(), left);
        assert!(!outbound.challenge_sent());
        assert_eq!(outbound.accept(b"later"), Ok(WriteAction::FlushFirst));
    }
    outbound.wrote_pending(1);
    assert!(outbound.challenge_sent());
    assert!(outbound.pending().is_empty());
    assert_eq!(outbound.accept(b"later"), Ok(WriteAction::Through));
}

#[test]
fn a_server_that_does_not_start_with_plain_settings_is_refused() {
    let rows = [
        (frame(kind::HEADERS, 4, 1, b"\x88"), WireError::ServerPreface),
        (frame(kind::SETTINGS, flag::ACK, 0, b""), WireError::ServerPreface),
        (b"HTTP/1.1 400 Bad Request".to_vec(), WireError::ServerPreface),
        (frame(kind::SETTINGS, 0, 0, b"\0\x01\0\0\0\0"), WireError::ServerSettings),
        (frame(kind::SETTINGS, 0, 0, b"\0\x05\0\0\x80\0"), WireError::ServerSettings),
        (frame(kind::SETTINGS, 0, 0, b"\0\x05\0"), WireError::ServerSettings),
    ];
    for (bytes, error) in rows {
        assert_eq!(Outbound::new(CHALLENGE).accept(&bytes), Err(error));
    }
}

#[test]
fn goaway_says_why_and_ends_the_writing() {
    let mut outbound = open();
    assert!(outbound.goaway(5, ErrorCode::InadequateSecurity, "bytes came from another process"));
    let payload = [b"\0\0\0\x05\0\0\0\x0c".as_slice(), b"bytes came from another process"].concat();
    assert_eq!(outbound.pending(), frame(kind::GOAWAY, 0, 0, &payload));
    assert_eq!(outbound.accept(b"x"), Err(WireError::Closed));
    assert!(!outbound.goaway(5, ErrorCode::NoError, "again"));
    assert!(outbound.challenge_sent());
}

#[test]
fn goaway_is_sent_only_where_a_frame_may_start() {
    let frames = [frame(0, 0, 1, b"a message"), frame(0, 1, 1, b""), frame(1, 5, 1, b"\x88")];
    let bytes = frames.concat();
    let ends = [frames[0].len(), frames[0].len() + frames[1].len(), bytes.len()];
    for cut in 0..=bytes.len() {
        for piece in [1, 4, bytes.len()] {
            let mut outbound = open();
            bytes[..cut].chunks(piece).for_each(|written| outbound.wrote(written));
            assert_eq!(outbound.goaway(1, ErrorCode::NoError, ""), cut == 0 || ends.contains(&cut), "cut at {cut}");
        }
    }
}

#[test]
fn goaway_before_the_challenge_still_follows_settings() {
    let goaway = frame(kind::GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x01no");
    let mut early = Outbound::new(CHALLENGE);
    assert_eq!(early.accept(&settings()[..7]), Ok(WriteAction::Taken(7)));
    assert!(early.goaway(0, ErrorCode::ProtocolError, "no"));
    assert_eq!(early.pending(), [frame(kind::SETTINGS, 0, 0, b""), goaway.clone()].concat());
    early.wrote_pending(early.pending().len());
    assert!(!early.challenge_sent());

    let mut challenging = Outbound::new(CHALLENGE);
    assert_eq!(challenging.accept(&settings()), Ok(WriteAction::Taken(settings().len())));
    challenging.wrote_pending(30);
    assert!(challenging.goaway(0, ErrorCode::ProtocolError, "no"));
    assert_eq!(challenging.pending(), [&[settings(), ping()].concat()[30..], &goaway].concat());
}

#[test]
fn long_reasons_are_cut_between_characters() {
    let mut outbound = open();
    assert!(outbound.goaway(0, ErrorCode::NoError, &"é".repeat(1000)));
    assert_eq!(outbound.pending().len(), 9 + 8 + 256);
    let mut outbound = open();
    assert!(outbound.goaway(0, ErrorCode::NoError, &format!("x{}", "é".repeat(1000))));
    assert_eq!(outbound.pending().len(), 9 + 8 + 255);
}
