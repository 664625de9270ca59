//! From good inputs to bad ones: a small mutator whose every step follows from one number.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// How many mutants a target sees when nobody says otherwise: about a second each.
const ITERATIONS: usize = 3000;
/// No mutant grows beyond this.
const MAX_BYTES: usize = 128 * 1024;
/// Bytes on which parsers decide.
const PIVOTS: &[u8] = b"\0\x01\x7f\x80\xff \t\n\r\"'#%&*+,-./:;=?@[\\]^_{|}~09azAZ";

/// Gives `target` every input of `corpus` and then mutants of them. `TETHER_FUZZ_ITERATIONS` says how many, and
/// `TETHER_FUZZ_SEED` which. A mutant that breaks the target is printed, as text and as the bytes to write a test with.
pub fn fuzz(corpus: &[Vec<u8>], target: impl Fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("it is a number"));
    let iterations = number("TETHER_FUZZ_ITERATIONS").unwrap_or(ITERATIONS);
    let mut random = Random(number("TETHER_FUZZ_SEED").unwrap_or(0) as u64);
    for input in corpus {
        run(&target, input);
    }
    for _ in 0..iterations {
        let mut mutant = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut mutant, corpus, &mut random);
        }
        run(&target, &mutant);
    }
}

fn run(target: &impl Fn(&[u8]), input: &[u8]) {
    let broken = |panic: Box<dyn Any + Send>| {
        eprintln!("the input was: {}\nas bytes: {input:?}", String::from_utf8_lossy(input));
        resume_unwind(panic)
    };
    catch_unwind(AssertUnwindSafe(|| target(input))).unwrap_or_else(broken);
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let length = random.below(bytes.len() - at + 1).min(1 << random.below(12));
    match random.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = PIVOTS[random.below(PIVOTS.len())],
        2 => bytes.insert(at, PIVOTS[random.below(PIVOTS.len())]),
        3 => drop(bytes.drain(at..at + length)),
        4 => bytes.truncate(at),
        5 => {
            let again = bytes[at..at + length].to_vec();
            bytes.splice(at..at, again);
        }
        6 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            let piece = &other[from..from + random.below(other.len() - from + 1)];
            bytes.splice(at..at + length, piece.iter().copied());
        }
        7 => bytes
            .splice(at..at, std::iter::repeat_n(PIVOTS[random.below(PIVOTS.len())], 1 << random.below(11)))
            .for_each(drop),
        _ => bytes[at..at + length].reverse(),
    }
    bytes.truncate(MAX_BYTES);
}

/// splitmix64: every number follows from the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }
}
