//! Gradients to the ranks that own them, and parameters back, for any cut of the parameters: the
//! bits of a plain sum in rank order.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use half::bf16;
use optswap::internals::step::fill_synthetic_gradients;
use optswap::{
    Communicator, ErrorKind, Inventory, ParamIndex, Result, Sharding, Shards, SwappedOptimizer,
};
use support::Drives;
use support::shards::{slices, start};
use support::world::{all, config_for, inventory, on_ranks};

/// Sizes that fit no block.
const RAGGED: [usize; 4] = [9000, 37, 12_000, 4099];
/// Less than a block: of the default cut, all but the first rank own nothing.
const SMALL: [usize; 3] = [3, 1, 700];

/// A cut of the parameters: the default, or those that every framework has, or pieces of the
/// caller's own, the last parameter first.
fn shardings(inventory: &Inventory, comm: &dyn Communicator) -> [Sharding; 3] {
    let own = slices(inventory, comm.rank().index(), comm.size(), 7);
    [Sharding::default(), Sharding::slices(), Sharding::own(own)]
}

/// All gradients as a rank has computed them: of any size, so that the order of a sum is seen.
fn gradients(rank: usize, elems: usize) -> Vec<f32> {
    let mut full = vec![0.0; elems];
    fill_synthetic_gradients(7 + rank as u64, 1, 0, &mut full, |gradient| gradient);
    let size = |at: usize| 10f32.powi((at % 7) as i32 - 3 + rank as i32 % 2);
    full.iter_mut().enumerate().for_each(|(at, gradient)| *gradient *= size(at));
    full
}

fn sum_in_rank_order(ranks: usize, elems: usize) -> Vec<f32> {
    let mut sum = gradients(0, elems);
    for rank in 1..ranks {
        sum.iter_mut().zip(gradients(rank, elems)).for_each(|(sum, theirs)| *sum += theirs);
    }
    sum
}

/// The part of all elements that a rank owns, in the order of its shard.
fn own_part<T: Copy>(optimizer: &SwappedOptimizer, full: &[T]) -> Vec<T> {
    let inventory = optimizer.plan().inventory();
    let part = |piece: &optswap::Run| {
        let start = inventory.flat_of(piece.param, piece.param_offset) as usize;
        full[start..start + piece.elems as usize].to_vec()
    };
    optimizer.partition().pieces().iter().flat_map(part).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Reduces all gradients at once and parameter by parameter, and gathers what comes of it.
fn exchange(optimizer: &mut SwappedOptimizer) -> Result<()> {
    let (rank, ranks) = (optimizer.communicator().rank().index(), optimizer.communicator().size());
    let inventory = optimizer.plan().inventory().clone();
    let elems = inventory.total_elems() as usize;
    let (full, sum) = (gradients(rank, elems), sum_in_rank_order(ranks, elems));
    let expected = own_part(optimizer, &sum);

    let mut shard = vec![f32::NAN; expected.len()];
    optimizer.reduce_gradients(&full, &mut shard)?;
    assert_eq!(bits(&shard), bits(&expected), "rank {rank} of {ranks}");

    shard.fill(f32::NAN);
    // The last ones first, as backward gives them.
    for param in (0..inventory.parameters().len()).rev().map(ParamIndex::from_index) {
        let start = inventory.flat_start(param) as usize;
        let full = &full[start..start + inventory.elems(param) as usize];
        let is_owner = optimizer.reduce_gradient(param, full, &mut shard)?;
        let mut pieces = optimizer.partition().pieces().iter();
        assert_eq!(is_owner, pieces.any(|piece| piece.param == param && piece.elems > 0));
    }
    assert_eq!(bits(&shard), bits(&expected), "rank {rank} of {ranks}");

    let mut gathered = vec![f32::NAN; elems];
    optimizer.gather_parameters(&shard, &mut gathered)?;
    assert_eq!(bits(&gathered), bits(&sum), "rank {rank} of {ranks}");
    let halves: Vec<bf16> = sum.iter().map(|value| bf16::from_f32(*value)).collect();
    let mut gathered = vec![bf16::ZERO; elems];
    optimizer.gather_parameters(&own_part(optimizer, &halves), &mut gathered)?;
    assert!(gathered == halves, "rank {rank} of {ranks}");
    Ok(())
}

#[test]
fn any_cut_has_the_bits_of_a_sum_in_rank_order() {
    for sizes in [&RAGGED[..], &SMALL] {
        let inventory = &inventory(sizes);
        for ranks in 1..=4 {
            let drives = Drives::new(1);
            let config = config_for(&drives);
            all(on_ranks(ranks, |comm| {
                for sharding in shardings(inventory, &*comm) {
                    let mut optimizer = start(&config, inventory, &comm, &sharding, 5)?;
                    exchange(&mut optimizer)?;
                    // Once more, now that it is known who owns what.
                    exchange(&mut optimizer)?;
                    comm.barrier()?;
                    optimizer.close();
                    comm.barrier()?;
                }
                Ok(())
            }));
        }
    }
}

/// Four million bytes go to a rank at a time.
#[test]
fn more_elements_than_one_round_holds_are_exchanged_too() {
    let inventory = &inventory(&[2_500_000, 100, 600_000]);
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.swap.chunk_elements.0 = 256 << 10;
    config.drives.stripe_unit.0 = 1 << 20;
    all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, inventory, &comm, &Sharding::slices(), 5)?;
        exchange(&mut optimizer)?;
        optimizer.close();
        Ok(())
    }));
}

fn refused(result: Result<()>, words: &[&str]) {
    let error = result.unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && !error.is_agreed(), "{error}");
    words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error}"));
}

#[test]
fn a_wrong_length_is_refused_before_anything_is_sent() {
    let inventory = &inventory(&RAGGED);
    for shards in [Shards::Contiguous, Shards::Slices] {
        let drives = Drives::new(1);
        let config = config_for(&drives);
        let sharding = Sharding { shards, shared: None };
        all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, inventory, &comm, &sharding, 5)?;
            if comm.rank().0 == 1 {
                refuse_wrong_lengths(&mut optimizer);
            }
            // The other rank has seen nothing of all that.
            exchange(&mut optimizer)
        }));
    }
}

fn refuse_wrong_lengths(optimizer: &mut SwappedOptimizer) {
    let elems = optimizer.plan().inventory().total_elems() as usize;
    let full = vec![1.0f32; elems + 1];
    let mut shard = vec![7.0f32; optimizer.partition().elems() as usize + 1];
    let own = shard.len() - 1;
    let all_parameters = ["another length than all parameters together", "25136"];
    let the_shard = ["another length than the shard"];
    refused(optimizer.reduce_gradients(&full, &mut shard[..own]), &all_parameters);
    refused(optimizer.reduce_gradients(&full[..elems], &mut shard), &the_shard);
    let mut reduce = |param: u32, len: usize, shard: &mut [f32]| {
        optimizer.reduce_gradient(ParamIndex(param), &full[..len], shard).map(drop)
    };
    refused(reduce(4, 37, &mut shard[..own]), &["there is no such parameter"]);
    refused(
        reduce(1, 38, &mut shard[..own]),
        &["another length than its parameter", "layer1.bias"],
    );
    refused(reduce(1, 37, &mut shard), &the_shard);
    assert!(shard.iter().all(|value| *value == 7.0));
    let mut gathered = vec![7.0f32; elems];
    refused(optimizer.gather_parameters(&shard, &mut gathered), &the_shard);
    refused(
        optimizer.gather_parameters(&shard[..own], &mut gathered[1..]),
        &["another length than all parameters together"],
    );
    assert!(gathered.iter().all(|value| *value == 7.0));
}
