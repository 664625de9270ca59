//! The Huffman code of RFC 7541, Appendix B.
//!
//! The code is canonical: codes of one length are consecutive and ordered by symbol, and a longer code is numerically
//! above every shorter one. The lengths alone therefore define it, and everything else here is derived from them when
//! the crate is compiled.

use super::HpackError;

/// Appends the text that `encoded` stands for to `out`.
///
/// Padding must be the first bits of EOS and shorter than a byte, and EOS itself must not occur (RFC 7541 section 5.2).
pub(super) fn decode(encoded: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let mut input = encoded.iter();
    // The next bit to read is the highest one; below the `have` valid bits there are only zeros.
    let mut bits: u64 = 0;
    let mut have: u32 = 0;
    loop {
        while have <= 56 {
            let Some(&byte) = input.next() else { break };
            bits |= u64::from(byte) << (56 - have);
            have += 8;
        }
        let (symbol, length) = first_symbol((bits >> 32) as u32);
        if length > have {
            break;
        }
        // Symbol 256 is EOS, which must not be sent.
        out.push(u8::try_from(symbol).map_err(|_| HpackError::Huffman)?);
        bits <<= length;
        have -= length;
    }
    let padding_is_ones = bits == !(u64::MAX >> have);
    if have < 8 && padding_is_ones { Ok(()) } else { Err(HpackError::Huffman) }
}

/// The symbol whose code is at the top of `window`, and the length of that code in bits.
fn first_symbol(window: u32) -> (u16, u32) {
    let (symbol, length) = SHORT[(window >> 24) as usize];
    if length != 0 {
        return (symbol, u32::from(length));
    }
    let mut length = 9;
    while u64::from(window) >= CODE.end[length] {
        length += 1; // ends at 30 at the latest: the code is complete, so end[30] is 2^32
    }
    let nth = (window >> (32 - length)) - CODE.first[length];
    (CODE.symbols[CODE.offset[length] + nth as usize], length as u32)
}

/// The code of `symbol`, right-justified, and its length in bits.
#[cfg(test)]
pub(crate) fn code_of(symbol: usize) -> (u32, u32) {
    let length = usize::from(LENGTHS[symbol]);
    let rank =
        CODE.symbols[CODE.offset[length]..].iter().position(|&s| usize::from(s) == symbol).expect("every symbol");
    (CODE.first[length] + rank as u32, length as u32)
}

const SYMBOLS: usize = 257;
const LONGEST: usize = 30;

struct Code {
    /// All symbols by length of their code, then by value.
    symbols: [u16; SYMBOLS],
    /// Where in `symbols` those with codes of this length start.
    offset: [usize; LONGEST + 1],
    /// The first code of this length.
    first: [u32; LONGEST + 1],
    /// One past the last code of this length, at the top of 32 bits.
    end: [u64; LONGEST + 1],
}

static CODE: Code = derive();
/// Symbol and length by the first byte, for codes of at most eight bits: nearly all of what headers hold.
static SHORT: [(u16, u8); 256] = derive_short(&derive());

const fn derive() -> Code {
    let mut code =
        Code { symbols: [0; SYMBOLS], offset: [0; LONGEST + 1], first: [0; LONGEST + 1], end: [0; LONGEST + 1] };
    let mut placed = 0;
    let mut next: u32 = 0;
    let mut length = 1;
    while length <= LONGEST {
        next <<= 1;
        code.offset[length] = placed;
        code.first[length] = next;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed] = symbol as u16;
                placed += 1;
                next += 1;
            }
            symbol += 1;
        }
        code.end[length] = (next as u64) << (32 - length);
        length += 1;
    }
    code
}

const fn derive_short(code: &Code) -> [(u16, u8); 256] {
    let mut short = [(0, 0); 256];
    let mut length = 1;
    while length <= 8 {
        let mut nth = 0;
        while code.offset[length] + nth < code.offset[length + 1] {
            let base = (code.first[length] as usize + nth) << (8 - length);
            let mut low = 0;
            while low < 1 << (8 - length) {
                short[base + low] = (code.symbols[code.offset[length] + nth], length as u8);
                low += 1;
            }
            nth += 1;
        }
        length += 1;
    }
    short
}

/// Bits in the code of each byte value, and of EOS at the end.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
