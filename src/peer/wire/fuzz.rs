//! Entry points for fuzzers. Not part of the API.

use super::{Event, Inbound, Passed, WireError};

/// Feeds any bytes to an [`Inbound`] and checks what must hold for all of them: no panic, bounded memory, the same
/// result however the bytes are cut, and an output that a second one passes as it is.
///
/// The first byte says how the rest is cut; an odd one also puts the client's preface in front.
pub fn fuzz_inbound(data: &[u8]) {
    let Some((&control, bytes)) = data.split_first() else { return };
    let preface: &[u8] = if control % 2 == 1 { super::frame::PREFACE } else { b"" };
    let bytes = [preface, bytes].concat();
    let whole = run(&bytes, 16 * 1024);
    let cut = run(&bytes, usize::from(control / 2).max(1));
    if [whole.error, cut.error].contains(&Some(WireError::Expansion)) {
        return; // the one bound that is about a single read
    }
    assert_eq!(whole.error, cut.error, "the error depends on how the bytes are cut");
    // An error ends the connection, and the read that holds it reports nothing else.
    if whole.error.is_none() {
        assert_eq!(whole.answered, cut.answered, "the event depends on how the bytes are cut");
        assert_eq!(whole.output, cut.output, "the output depends on how the bytes are cut");
    }
    let again = run(&cut.output, 4096);
    assert_eq!(again.error, None, "the output is not valid");
    // A second ACK with the same payload passes the first time and is the answer now.
    // The beginning of one at the end of the input passes the first time too, and waits for its end now.
    if !again.answered {
        let waiting = cut.output.strip_prefix(again.output.as_slice());
        let waits = waiting.is_some_and(|rest| ANSWER.starts_with(rest));
        assert!(waits, "the output still holds an illegal authority: {:?}, {:?}", again.output, cut.output);
    }
}

/// The PING ACK that answers the challenge of [`run`].
const ANSWER: [u8; 17] = [0, 0, 8, 6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What one connection came to.
pub(super) struct Outcome {
    pub(super) output: Vec<u8>,
    pub(super) answered: bool,
    pub(super) error: Option<WireError>,
}

/// Runs a connection whose reads have `cut` bytes each. The challenge is eight zero bytes.
pub(super) fn run(bytes: &[u8], cut: usize) -> Outcome {
    const MAX_WAITING: usize = 1024 * 1024 + 128 * 1024;
    let mut inbound = Inbound::new([0; 8]);
    let mut outcome = Outcome { output: Vec::new(), answered: false, error: None };
    for read in bytes.chunks(cut) {
        match inbound.accept(read) {
            Ok(result) => {
                outcome.answered |= result.event == Some(Event::ChallengeAnswered);
                if result.passed == Passed::AsRead {
                    outcome.output.extend_from_slice(read);
                }
            }
            Err(error) => {
                outcome.error = Some(error);
                return outcome;
            }
        }
        assert!(inbound.queued().len() <= MAX_WAITING, "the queue outgrew its bound");
        outcome.output.extend_from_slice(inbound.queued());
        inbound.consume(inbound.queued().len());
    }
    outcome
}
