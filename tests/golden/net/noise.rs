//! The hash of make.py, shared by tests and benchmarks.

use fedllava::nn::Net;

/// Numbers in [-1, 1), as `noise` in make.py.
pub fn noise(n: usize, salt: u32) -> Vec<f32> {
    let one = |i: u32| {
        let mut h = i.wrapping_add(salt.wrapping_mul(0x9E37_79B1));
        h ^= h >> 16;
        h = h.wrapping_mul(0x85EB_CA6B);
        h ^= h >> 13;
        h = h.wrapping_mul(0xC2B2_AE35);
        h ^= h >> 16;
        (f64::from(h >> 8) / f64::from(1 << 23) - 1.0) as f32
    };
    (0..n as u32).map(one).collect()
}

/// Parameters as `value` in make.py.
pub fn params(net: &Net) -> Vec<f32> {
    let mut data = Vec::with_capacity(net.layout.len());
    for (i, e) in net.layout.entries().iter().enumerate() {
        let inputs: usize = e.shape.iter().skip(1).product();
        let own: (f64, f64) = match e.name.rsplit('.').next() {
            Some("running_var") => (1.0, 0.5),
            Some("running_mean") => (0.0, 0.1),
            _ if e.shape.len() > 1 => (0.0, (6.0 / inputs as f64).sqrt()),
            Some("weight") => (1.0, 0.25),
            _ => (0.0, 0.1),
        };
        data.extend(noise(e.len(), i as u32 + 1).into_iter().map(|u| (own.0 + own.1 * f64::from(u)) as f32));
    }
    data
}
