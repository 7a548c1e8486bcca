//! Shares: which part of the stripe units each drive gets, and in which order they are dealt.

/// Deals units to drives one by one, so that at any moment each drive has its share of what has
/// been dealt so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dealer {
    /// Relative; a drive of share 0 gets nothing.
    shares: Vec<f64>,
    dealt: Vec<u64>,
    /// The drive that is first in turn where several have the same load.
    first_drive: usize,
}

impl Dealer {
    pub fn new(shares: Vec<f64>, first_drive: usize) -> Self {
        Self { dealt: vec![0; shares.len()], shares, first_drive }
    }

    /// A dealer with other shares that has dealt nothing yet.
    pub fn with_shares(&self, shares: Vec<f64>) -> Self {
        Self::new(shares, self.first_drive)
    }

    pub fn shares(&self) -> &[f64] {
        &self.shares
    }

    /// Deals a unit to the allowed drive that then has the lowest load relative to its share;
    /// `None` if no drive is allowed.
    pub fn deal(&mut self, is_allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let drive = self.next_among(is_allowed)?;
        self.dealt[drive] += 1;
        Some(drive)
    }

    fn next_among(&self, is_allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let drives = self.shares.len();
        let load_after = |drive: usize| (self.dealt[drive] + 1) as f64 / self.shares[drive];
        let in_turn = (0..drives).map(|turn| (self.first_drive + turn) % drives);
        in_turn
            .filter(|drive| is_allowed(*drive))
            .min_by(|a, b| load_after(*a).total_cmp(&load_after(*b)))
    }

    /// The drive that a unit would be dealt to, of all with a share above 0.
    pub fn next(&self) -> usize {
        self.next_among(|drive| self.shares[drive] > 0.0).unwrap_or(0)
    }

    /// Deals a unit to any drive with a share above 0.
    pub fn deal_freely(&mut self) -> usize {
        let drive = self.next();
        if let Some(dealt) = self.dealt.get_mut(drive) {
            *dealt += 1;
        }
        drive
    }

    /// Takes back a unit that was dealt to a drive.
    pub fn take_back(&mut self, drive: usize) {
        self.dealt[drive] = self.dealt[drive].saturating_sub(1);
    }
}

/// The weights divided by their sum.
pub fn normalized(weights: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| if sum > 0.0 { weight / sum } else { 0.0 }).collect()
}

/// The shares nearest to the weights for which the drives have room: a drive that would overflow
/// gets as much as it has room for, and the others take more, in proportion to their weights. No
/// other shares give a lower load, relative to its speed, of the busiest drive.
pub(super) fn shares_within(weights: &[f64], rooms: &[f64]) -> Vec<f64> {
    let mut is_full = vec![false; weights.len()];
    // Every round fills at least one drive or is the last.
    for _ in weights {
        let full = || (0..weights.len()).filter(|drive| is_full[*drive]);
        let left = 1.0 - full().map(|drive| rooms[drive]).sum::<f64>();
        let open: f64 = (0..weights.len()).filter(|it| !is_full[*it]).map(|it| weights[it]).sum();
        if open <= 0.0 {
            break;
        }
        let share = |drive: usize| {
            if is_full[drive] { rooms[drive] } else { left.max(0.0) * weights[drive] / open }
        };
        let shares: Vec<f64> = (0..weights.len()).map(share).collect();
        let is_over = |drive: &usize| !is_full[*drive] && shares[*drive] > rooms[*drive];
        let over: Vec<usize> = (0..weights.len()).filter(is_over).collect();
        if over.is_empty() {
            return shares;
        }
        over.into_iter().for_each(|drive| is_full[drive] = true);
    }
    // Only drives of weight 0 have room left: their bytes stay where they are.
    normalized(rooms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_drive_leaves_the_rest_to_the_others() {
        let shares = shares_within(&[300.0, 300.0, 30.0], &[0.4, 0.5, 0.5]);
        let expected = [0.4, 0.5, 0.1];
        shares
            .iter()
            .zip(expected)
            .for_each(|(it, expected)| assert!((it - expected).abs() < 1e-9));
        assert_eq!(shares_within(&[1.0, 1.0], &[0.75, 0.75]), [0.5, 0.5]);
    }

    proptest! {
        #[test]
        fn shares_fill_up_to_one_and_no_drive_beyond_its_room(
            drives in prop::collection::vec((0.01f64..10.0, 0.0f64..1.0), 1..7),
        ) {
            let (weights, mut rooms): (Vec<f64>, Vec<f64>) = drives.into_iter().unzip();
            let sum: f64 = rooms.iter().sum();
            rooms.iter_mut().for_each(|room| *room *= 1.25 / sum.max(1e-9));
            let shares = shares_within(&weights, &rooms);
            let sum: f64 = shares.iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "{shares:?} of {rooms:?}");
            for (share, room) in shares.iter().zip(&rooms) {
                prop_assert!(*share <= room + 1e-9, "{shares:?} of {rooms:?}");
            }
            // Whoever could have more is as busy as the busiest that is not full.
            let busy: Vec<f64> = shares.iter().zip(&weights).map(|(s, w)| s / w).collect();
            let busiest = busy.iter().copied().fold(0.0, f64::max);
            for drive in 0..weights.len() {
                let is_full = shares[drive] >= rooms[drive] - 1e-9;
                prop_assert!(is_full || busy[drive] > busiest - 1e-6, "{shares:?} of {rooms:?}");
            }
        }

        #[test]
        fn every_drive_is_dealt_its_share(
            units in 1u64..500,
            shares in prop::collection::vec(0.1f64..10.0, 1..6),
        ) {
            let mut dealer = Dealer::new(shares.clone(), 0);
            for _ in 0..units {
                dealer.deal_freely();
            }
            for (share, dealt) in normalized(&shares).iter().zip(&dealer.dealt) {
                let ideal = units as f64 * share;
                let given = *dealt as f64;
                prop_assert!((given - ideal).abs() < shares.len() as f64, "{given} of {ideal}");
            }
        }
    }
}
