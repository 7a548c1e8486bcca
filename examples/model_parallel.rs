//! Tensor parallelism by two, and data parallelism by all other ranks: two inventories in one job,
//! slices of every parameter, and a layer norm of which every rank's half has a copy.
//!
//! ```text
//! launch/ranks 4 target/release/examples/model_parallel --drives /nvme0/me,/nvme1/me
//! ```
//!
//! Even ranks share one half of the model, odd ranks the other. There is no model behind it:
//! masters and gradients are synthetic, functions of parameter and element, so that the state after
//! some steps is the same for any number of ranks per half. It prints its digest.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use half::bf16;
use optswap::coord::{Communicator, agree};
use optswap::error::{Error, Result};
use optswap::job;
use optswap::partition::{Piece, Run};
use optswap::state::{Inventory, Parameter};
use optswap::step::{
    Gradients, Sharding, StepOptions, SwappedOptimizer, Verifier, fill_synthetic_gradients,
    fill_synthetic_masters,
};
use optswap::units::ParamIndex;
use optswap_args::{self as cli, SwapArgs, say};

/// Step synthetic gradients through two inventories, cut into slices of every parameter.
#[derive(Debug, Parser)]
#[command(name = "model_parallel", version, help_expected = true)]
struct Args {
    #[command(flatten)]
    swap: SwapArgs,

    /// Steps.
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: u64,
}

fn main() -> ExitCode {
    let args: Args = match cli::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    job::run_main(&args.swap.launch(), |comm| train(&args, &comm))
}

/// Half of a block: columns of the one matrix, rows of the other, and a whole layer norm.
fn half_of_model() -> Result<Inventory> {
    Inventory::new(vec![
        Parameter::new("norm.weight", [512]).replicated(),
        Parameter::new("up.weight", [512, 1024]),
        Parameter::new("down.weight", [1024, 512]),
    ])
}

/// This rank's slice of every parameter: as FSDP and ZeRO-3 have it.
fn slices(inventory: &Inventory, shared: &dyn Communicator) -> Vec<Piece> {
    let (rank, ranks) = (u64::from(shared.rank().0), shared.size() as u64);
    let params = (0..inventory.parameters().len()).map(ParamIndex::from_index);
    let slice = |param| {
        let share = inventory.elems(param).div_ceil(ranks);
        let start = inventory.elems(param).min(share * rank);
        let end = inventory.elems(param).min(start + share);
        Piece::new(param, start, end - start)
    };
    params.map(slice).collect()
}

fn train(args: &Args, comm: &Arc<dyn Communicator>) -> Result<()> {
    if comm.size() < 2 {
        return Err(Error::usage("a model in two halves needs two ranks at least")
            .hint("launch/ranks 4 target/release/examples/model_parallel ...")
            .with("ranks", comm.size()));
    }
    let config = agree(&**comm, args.swap.resolve())?;
    let half = comm.rank().0 % 2;
    let shared = comm.split(half)?;
    let inventory = agree(&**comm, half_of_model())?;
    let sharding = Sharding::own(slices(&inventory, &*shared)).among(shared);
    let mut optimizer =
        SwappedOptimizer::create_sharded(&config, inventory.clone(), Arc::clone(comm), &sharding)?;

    // What a half has alone differs; the copies of the norm are alike.
    let seed = |run: &Run| match inventory.parameter(run.param).replicated {
        true => 2,
        false => u64::from(half),
    };
    let fill = |run: &Run, masters: &mut [f32]| {
        let flat = inventory.flat_of(run.param, run.param_offset);
        fill_synthetic_masters(seed(run), flat, masters);
        Ok(())
    };
    let elems = optimizer.partition().elems() as usize;
    let (mut shard, mut params) = (vec![0.0f32; elems], vec![bf16::ZERO; elems]);
    optimizer.initialize_parameters_into(&mut params, fill)?;
    let mut verifier = Verifier::new(&optimizer, fill)?;
    let mut grad_norm = 0.0;
    for number in 1..=args.steps {
        for piece in optimizer.partition().pieces() {
            let flat = inventory.flat_of(piece.param, piece.param_offset);
            let out = &mut shard[piece.in_shard()];
            fill_synthetic_gradients(seed(piece), number, flat, out, |gradient| gradient);
        }
        let gradients = Gradients::of_shard(optimizer.partition(), &shard)?;
        let outcome = optimizer.step(&gradients, &mut params, StepOptions::default())?;
        verifier.step(&optimizer, &outcome, &shard);
        verifier.check_with(&mut optimizer, &params)?;
        grad_norm = outcome.grad_norm;
    }
    let digest = optimizer.element_digest_with(&params)?;
    let (ranks, inventories) = (comm.size(), optimizer.group().count());
    if comm.rank().0 == 0 {
        say(serde_json::json!({
            "ranks": ranks,
            "inventories": inventories,
            "grad_norm": grad_norm,
            "element_digest": digest,
            "verified": true,
        }))?;
    }
    optimizer.close();
    Ok(())
}
