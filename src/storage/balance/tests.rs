//! A node's drives in a loop with the keeper of their weights.

use proptest::prelude::*;

use super::*;

/// What a step measures on drives of these speeds, each given its weight's part of the bytes. A
/// drive that waits for the others shows `burst` times its speed.
fn measure(speeds: &[f64], weights: &[f64], burst: f64) -> Vec<DriveLoad> {
    let seconds = |drive: usize| weights[drive] / speeds[drive];
    let step = (0..speeds.len()).map(seconds).fold(0.0, f64::max);
    let load = |drive: usize| {
        let bytes = (1e12 * weights[drive]) as u64;
        let faster = if seconds(drive) < 0.8 * step { burst } else { 1.0 };
        let busy_ns = (1e12 * seconds(drive) / faster) as u64;
        let observers = u32::from(bytes > 0);
        let (bytes, busy_ns, observers) = ([bytes; 2], [busy_ns; 2], [observers; 2]);
        DriveLoad { bytes, busy_ns, observers, known_bytes_per_s: 0.0 }
    };
    (0..speeds.len()).map(load).collect()
}

/// Steps until the keeper leaves things alone for 50 of them: how many changes, and after how many
/// steps the last one.
fn settle(keeper: &mut WeightKeeper, speeds: &[f64], burst: f64) -> (u32, u32) {
    let (mut changes, mut last, mut step) = (0, 0, 0);
    while step < last + 50 {
        step += 1;
        assert!(step < 500, "it never comes to rest");
        let mut loads = measure(speeds, keeper.weights(), burst);
        if keeper.look(&mut loads) && keeper.decide(&loads).is_some() {
            (changes, last) = (changes + 1, step);
        }
    }
    (changes, last)
}

/// Seconds of a step / seconds of the best step.
fn loss(keeper: &WeightKeeper, speeds: &[f64]) -> f64 {
    let pairs = keeper.weights().iter().zip(speeds);
    let step = pairs.map(|(weight, speed)| weight / speed).fold(0.0, f64::max);
    step * speeds.iter().sum::<f64>()
}

#[test]
fn a_drive_at_a_quarter_is_seen_at_once_and_so_is_its_recovery() {
    for (drives, burst) in [(2, 1.0), (3, 1.5), (4, 1.0), (4, 1.5), (8, 1.3)] {
        let case = format!("{drives} drives, bursts {burst}");
        let mut keeper = WeightKeeper::new(&vec![1.0; drives]);
        let mut speeds = vec![300e6; drives];
        assert_eq!(settle(&mut keeper, &speeds, burst), (0, 0), "{case}");
        for speed in [75e6, 300e6] {
            speeds[1] = speed;
            let mut loads = measure(&speeds, keeper.weights(), burst);
            assert!(keeper.look(&mut loads), "{case}");
            let changes = keeper.decide(&loads).unwrap();
            assert_eq!(changes.len(), 1, "{case}: {changes:?}");
            assert_eq!((changes[0].drive, changes[0].factor < 1.0), (1, speed < 100e6), "{case}");
            assert!(loss(&keeper, &speeds) < 1.6, "{case}: {:?}", keeper.weights());
            let (changes, last) = settle(&mut keeper, &speeds, burst);
            assert!(changes <= 2 && last <= SETTLING, "{case}: {changes} changes in {last} steps");
            assert!(loss(&keeper, &speeds) < 1.1, "{case}: {:?}", keeper.weights());
        }
    }
}

#[test]
fn a_slight_loss_takes_some_measurements() {
    let mut keeper = WeightKeeper::new(&[1.0; 4]);
    let speeds = [1.0, 1.0, 0.6, 1.0];
    let mut loads = measure(&speeds, keeper.weights(), 1.0);
    let seen = (1..20).find(|_| keeper.look(&mut loads));
    assert!(seen.is_some_and(|looks| (2..=8).contains(&looks)), "{seen:?}");
}

#[test]
fn what_was_half_measured_is_put_right_soon() {
    let mut keeper = WeightKeeper::new(&[1.0; 4]);
    keeper.decide(&measure(&[1.0, 1.0, 0.3, 1.0], &[0.25; 4], 1.0)).unwrap();
    let speeds = [1.0, 1.0, 0.25, 1.0];
    assert!(loss(&keeper, &speeds) > 1.1);
    assert!(keeper.look(&mut measure(&speeds, keeper.weights(), 1.0)));
}

#[test]
fn a_drive_that_is_fast_only_while_it_has_little_to_do_is_left_alone_more_and_more() {
    let mut keeper = WeightKeeper::new(&[1.0; 2]);
    let mut changes = 0;
    for _ in 0..1000 {
        let is_loaded = keeper.weights()[1] > 0.3;
        let speeds = [1.0, if is_loaded { 0.25 } else { 1.0 }];
        let mut loads = measure(&speeds, keeper.weights(), 1.0);
        changes += u32::from(keeper.look(&mut loads) && keeper.decide(&loads).is_some());
    }
    assert!(changes < 80, "{changes} changes");
}

#[test]
fn a_drive_without_measurement_keeps_its_weight_and_one_of_weight_zero_stays_unused() {
    let mut keeper = WeightKeeper::new(&[1.0, 1.0, 1.0, 0.0]);
    let mut loads = measure(&[1.0, 1.0, 0.25, 1.0], &[1.0, 1.0, 1.0, 0.0], 1.0);
    loads[1] = DriveLoad::default();
    keeper.decide(&loads).unwrap();
    let weights = keeper.weights();
    assert!(weights[0] > weights[1] && weights[1] > weights[2], "{weights:?}");
    assert_eq!(weights[3], 0.0);
}

#[test]
fn two_ranks_on_a_drive_measure_its_sum() {
    let load = |bytes, busy_ns: u64| {
        let (busy_ns, observers) = ([busy_ns; 2], [1, 1]);
        DriveLoad { bytes, busy_ns, observers, known_bytes_per_s: 0.0 }
    };
    let half = load([50, 100], 1_000_000_000);
    let both = half.and(&half);
    assert_eq!(both.bytes_per_s(), [Some(100.0), Some(200.0)]);
    let alone = load([100, 200], 500_000_000);
    assert_eq!(rates(&[both, alone, DriveLoad::default()]), [Some(200.0), Some(400.0), None]);
}

proptest! {
    #[test]
    fn noise_of_a_tenth_moves_nothing(
        weights in prop::collection::vec(0.1f64..10.0, 1..8),
        noise in prop::collection::vec(prop::collection::vec(0.9f64..1.1, 8), 1..200),
    ) {
        let mut keeper = WeightKeeper::new(&weights);
        for noise in noise {
            let speeds = weights.iter().zip(noise).map(|(weight, noise)| weight * noise);
            let speeds: Vec<f64> = speeds.collect();
            prop_assert!(!keeper.look(&mut measure(&speeds, keeper.weights(), 1.0)));
        }
    }

    /// Whatever the drives are, and whatever was believed before: in the end the step is near the
    /// best one.
    #[test]
    fn any_drives_come_to_rest_near_the_best(
        drives in prop::collection::vec((0.05f64..1.0, 0.2f64..1.0), 2..7),
        burst in 1.0f64..1.5,
    ) {
        let (speeds, weights): (Vec<f64>, Vec<f64>) = drives.into_iter().unzip();
        let mut keeper = WeightKeeper::new(&weights);
        settle(&mut keeper, &speeds, burst);
        let loss = loss(&keeper, &speeds);
        prop_assert!(loss < 1.35, "{loss}: {:?} for {speeds:?}", keeper.weights());
    }
}
