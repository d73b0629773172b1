//! Arithmetic modulo the prime 2⁶¹ − 1, shares of a secret in it, and keys that two parties agree on.
//!
//! Shares are Shamir's (*How to Share a Secret*, 1979): a polynomial of degree `threshold − 1` with the secret at 0, one
//! value a party at 1, 2, …; any `threshold` of them give the secret, fewer say nothing of it. Keys are agreed on as
//! Diffie and Hellman do. **The group is a toy**: it has the protocol's algebra, which is what a simulation is about, and
//! 61 bits protect nobody.

use crate::error::{Error, Result};
use crate::key::Rng;

/// The Mersenne prime 2⁶¹ − 1.
pub const PRIME: u64 = (1 << 61) - 1;
/// A generator of the multiplicative group.
const GENERATOR: u64 = 37;

/// `a · b`.
pub fn times(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(PRIME)) as u64
}

/// `a + b`.
fn plus(a: u64, b: u64) -> u64 {
    (a + b) % PRIME
}

/// `a − b`.
fn minus(a: u64, b: u64) -> u64 {
    (a + PRIME - b) % PRIME
}

/// `a` to the power of `n`.
pub fn power(a: u64, mut n: u64) -> u64 {
    let (mut base, mut out) = (a % PRIME, 1);
    while n > 0 {
        if n & 1 == 1 {
            out = times(out, base);
        }
        base = times(base, base);
        n >>= 1;
    }
    out
}

/// A secret below the prime, not 0.
pub fn secret(rng: &mut Rng) -> u64 {
    1 + rng.below((PRIME - 1) as usize) as u64
}

/// What a party with this secret publishes.
pub fn public(secret: u64) -> u64 {
    power(GENERATOR, secret)
}

/// The key of two parties: one's secret, the other's public number.
pub fn agreed(secret: u64, public: u64) -> u64 {
    power(public, secret)
}

/// The shares of a secret for `parties`, at 1, 2, …
pub fn shares(secret: u64, parties: usize, threshold: usize, rng: &mut Rng) -> Vec<u64> {
    let higher: Vec<u64> = (1..threshold).map(|_| rng.below(PRIME as usize) as u64).collect();
    let at = |x: u64| plus(times(higher.iter().rev().fold(0, |sum, c| plus(times(sum, x), *c)), x), secret);
    (1..=parties as u64).map(at).collect()
}

/// The secret behind shares `(place from 1, value)`, by Lagrange's polynomial at 0. Fewer than `threshold` are refused.
pub fn joined(shares: &[(u64, u64)], threshold: usize) -> Result<u64> {
    if shares.len() < threshold {
        return Err(Error::data(format!("{} shares of a secret that needs {threshold}", shares.len())));
    }
    let used = &shares[..threshold];
    let each = used.iter().map(|&(x, y)| {
        let others = used.iter().filter(|(o, _)| *o != x);
        let (above, below) = others.fold((1, 1), |(a, b), (o, _)| (times(a, *o), times(b, minus(*o, x))));
        times(y, times(above, power(below, PRIME - 2)))
    });
    Ok(each.fold(0, plus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;

    #[test]
    fn any_threshold_of_shares_gives_the_secret_and_fewer_do_not() {
        let mut rng = Key::from_seed(1).rng();
        let own = secret(&mut rng);
        let all = shares(own, 6, 3, &mut rng);
        let of = |who: &[usize]| who.iter().map(|&i| (i as u64 + 1, all[i])).collect::<Vec<_>>();
        for who in [[0, 1, 2], [5, 3, 0], [2, 4, 5]] {
            assert_eq!(joined(&of(&who), 3).unwrap(), own);
        }
        assert!(joined(&of(&[0, 1]), 3).is_err());
        assert_ne!(joined(&of(&[0, 1]), 2).unwrap(), own, "two shares lie on a line through something else");
    }

    #[test]
    fn two_parties_agree() {
        let mut rng = Key::from_seed(2).rng();
        let (a, b) = (secret(&mut rng), secret(&mut rng));
        assert_eq!(agreed(a, public(b)), agreed(b, public(a)));
        assert_eq!((power(3, 5), times(PRIME - 1, PRIME - 1), power(7, PRIME - 1)), (243, 1, 1));
        // 37 generates: no power (p − 1) / q over the prime factors q of p − 1 is 1.
        for q in [2, 3, 5, 7, 11, 13, 31, 41, 61, 151, 331, 1321] {
            assert!((PRIME - 1).is_multiple_of(q) && power(GENERATOR, (PRIME - 1) / q) != 1, "{q}");
        }
    }
}
