//! The parameters of a picture that no caption names, and how a universe draws them.

use super::attributes::{Attributes, Backdrop, Composition, Ground, Place, Shape, Size, Texture};
use super::config::{Difficulty, Shift};
use super::palette::{Rgb, colour, hsv_of, hsv_of_ground};
use crate::key::Rng;

/// A filled outline. Lengths are pixels, angles radians.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub shape: Shape,
    pub texture: Texture,
    pub centre: [f32; 2],
    pub radius: f32,
    pub angle: f32,
    pub first: Rgb,
    pub second: Rgb,
    pub grain: f32,
    pub grain_angle: f32,
}

/// A straight bar across the picture, in front of everything.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub normal: [f32; 2],
    pub offset: f32,
    pub half_width: f32,
    pub colour: Rgb,
}

/// Everything the renderer needs.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub truth: Attributes,
    pub ground: Rgb,
    pub ground_second: Rgb,
    pub ground_period: f32,
    pub ground_angle: f32,
    pub behind: Vec<Object>,
    pub objects: Vec<Object>,
    pub front: Vec<Object>,
    pub bar: Option<Bar>,
    /// Factor on every colour.
    pub light: f32,
    /// Standard deviation of the pixel noise, in `[0, 1]` of full scale.
    pub noise: f32,
}

/// How a universe draws its scenes: the knobs, and how far it is moved from the benchmark.
#[derive(Clone, Copy)]
pub(super) struct Style<'a> {
    pub difficulty: &'a Difficulty,
    pub shift: &'a Shift,
    /// 0: the benchmark's look; 1: the pool's.
    pub distance: f32,
    /// Which half of the backgrounds is preferred when the shift says so.
    pub pool_half: bool,
}

const SIDE: f32 = super::SIDE as f32;

impl Style<'_> {
    /// Draws a scene that shows `composition`; clutter never shows one of `reserved` (sorted).
    pub fn scene(&self, rng: &mut Rng, composition: Composition, reserved: &[Composition]) -> Scene {
        let knobs = self.difficulty;
        let count = match rng.below(20) {
            0..=11 => 1,
            12..=16 => 2,
            _ => 3,
        };
        let radius = self.radius(rng, count);
        let centres = place_centres(rng, count, radius);
        let model = self.object(rng, composition, centres[0], radius);
        let (backdrop, ground, [ground_rgb, ground_second]) = self.background(rng, model.first);
        let objects: Vec<Object> = centres
            .iter()
            .map(|&centre| Object {
                centre,
                angle: self.tilt(rng),
                radius: radius * uniform(rng, 0.9, 1.1),
                ..model.clone()
            })
            .collect();
        let mut clutter = (0..rng.below(knobs.clutter + 1)).map(|_| self.distractor(rng, reserved)).collect::<Vec<_>>();
        let front = clutter.split_off(clutter.len().div_ceil(2));
        let truth = Attributes {
            composition,
            count,
            size: size_of(radius),
            place: (count == 1).then(|| place_of(centres[0])),
            backdrop,
            ground,
        };
        Scene {
            truth,
            ground: ground_rgb,
            ground_second,
            ground_period: uniform(rng, 0.8, 1.3),
            ground_angle: uniform(rng, 0.0, std::f32::consts::PI),
            behind: clutter,
            objects,
            front,
            bar: (rng.f64() < knobs.occlusion).then(|| self.bar(rng)),
            light: uniform(rng, 1.0 - knobs.light as f32, 1.0),
            noise: (knobs.noise + self.shift.noise * f64::from(self.distance)) as f32 * uniform(rng, 0.5, 1.5),
        }
    }

    fn radius(&self, rng: &mut Rng, count: u8) -> f32 {
        let crowd = [1.0, 0.8, 0.68][usize::from(count - 1)];
        let [low, high] = self.difficulty.radius;
        let scale = 1.0 + self.shift.size as f32 * self.distance;
        uniform(rng, low as f32, high as f32) * crowd * scale
    }

    fn tilt(&self, rng: &mut Rng) -> f32 {
        let most = self.difficulty.tilt.to_radians() as f32;
        uniform(rng, -most, most)
    }

    fn object(&self, rng: &mut Rng, c: Composition, centre: [f32; 2], radius: f32) -> Object {
        let jitter = self.difficulty.colour_jitter as f32;
        let hue = self.shift.hue as f32 * self.distance;
        let first = colour(rng, hsv_of(c.colour), jitter, hue);
        let [low, high] = self.difficulty.contrast;
        let contrast = uniform(rng, low as f32, high as f32);
        // Bright fills are patterned with dark, dark ones with light, white always with dark.
        let bright = first.iter().sum::<f32>() > 1.9;
        let toward = if bright || rng.below(2) == 0 { 0.0 } else { 1.0 };
        Object {
            shape: c.shape,
            texture: c.texture,
            centre,
            radius,
            angle: self.tilt(rng),
            first,
            second: first.map(|x| x + (toward - x) * contrast),
            grain: uniform(rng, 3.4, 5.0),
            grain_angle: uniform(rng, 0.0, std::f32::consts::PI),
        }
    }

    fn distractor(&self, rng: &mut Rng, reserved: &[Composition]) -> Object {
        let composition = Composition::draw_except(rng, reserved);
        let centre = [uniform(rng, 1.0, SIDE - 1.0), uniform(rng, 1.0, SIDE - 1.0)];
        let [low, high] = self.difficulty.clutter_radius;
        let radius = uniform(rng, low as f32, high as f32);
        self.object(rng, composition, centre, radius)
    }

    fn bar(&self, rng: &mut Rng) -> Bar {
        let angle = uniform(rng, 0.0, std::f32::consts::TAU);
        let ground = Ground::draw(rng);
        Bar {
            normal: [angle.cos(), angle.sin()],
            offset: uniform(rng, -9.0, 9.0),
            half_width: uniform(rng, 1.2, 2.5),
            colour: colour(rng, hsv_of_ground(ground), self.difficulty.colour_jitter as f32, 0.0),
        }
    }

    /// Pattern, colour, and the two colours painted: not too near the object's colour, so that it can be seen.
    fn background(&self, rng: &mut Rng, object: Rgb) -> (Backdrop, Ground, [Rgb; 2]) {
        let mut last = self.any_background(rng);
        for _ in 0..8 {
            let distance2: f32 = last.2[0].iter().zip(object).map(|(a, b)| (a - b).powi(2)).sum();
            if distance2 > 0.12 {
                break;
            }
            last = self.any_background(rng);
        }
        last
    }

    /// Each side's own half is every second value, so both halves have dark and pale ones.
    fn any_background(&self, rng: &mut Rng) -> (Backdrop, Ground, [Rgb; 2]) {
        let (mut backdrop, mut ground) = (Backdrop::draw(rng), Ground::draw(rng));
        if rng.f64() < self.shift.background {
            let half = usize::from(self.pool_half);
            backdrop = Backdrop::ALL[backdrop as usize / 2 * 2 + half];
            ground = Ground::ALL[ground as usize / 2 * 2 + half];
        }
        (backdrop, ground, self.ground_colours(rng, ground, backdrop))
    }

    fn ground_colours(&self, rng: &mut Rng, ground: Ground, backdrop: Backdrop) -> [Rgb; 2] {
        let first = colour(rng, hsv_of_ground(ground), self.difficulty.colour_jitter as f32, 0.0);
        let step = match backdrop {
            Backdrop::Plain => 0.0,
            Backdrop::Faded => 0.45,
            Backdrop::Grainy => 0.3,
            Backdrop::Lined | Backdrop::Tiled | Backdrop::Cloudy => 0.25,
        };
        let toward = if first.iter().sum::<f32>() > 1.5 { 0.0 } else { 1.0 };
        [first, first.map(|x| x + (toward - x) * step)]
    }
}

fn size_of(radius: f32) -> Size {
    match radius {
        r if r < 6.0 => Size::Small,
        r if r > 9.0 => Size::Large,
        _ => Size::Medium,
    }
}

fn place_of([x, y]: [f32; 2]) -> Place {
    let (dx, dy) = (x - SIDE / 2.0, y - SIDE / 2.0);
    match (dx.abs() < 4.0 && dy.abs() < 4.0, dx.abs() > dy.abs()) {
        (true, _) => Place::Middle,
        (_, true) if dx < 0.0 => Place::Left,
        (_, true) => Place::Right,
        _ if dy < 0.0 => Place::Top,
        _ => Place::Bottom,
    }
}

/// Centres with little overlap where a few tries find them; an object may leave the picture by a fifth of its radius.
fn place_centres(rng: &mut Rng, count: u8, radius: f32) -> Vec<[f32; 2]> {
    let margin = (radius * 0.8).min(SIDE / 2.0);
    let mut centres: Vec<[f32; 2]> = Vec::new();
    for _ in 0..count {
        let mut centre = [SIDE / 2.0; 2];
        for _ in 0..30 {
            centre = [uniform(rng, margin, SIDE - margin), uniform(rng, margin, SIDE - margin)];
            let far = |c: &[f32; 2]| (c[0] - centre[0]).hypot(c[1] - centre[1]) > 1.8 * radius;
            if centres.iter().all(far) {
                break;
            }
        }
        centres.push(centre);
    }
    centres
}

pub(super) fn uniform(rng: &mut Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.f32()
}
