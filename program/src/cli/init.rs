//! `optswap init`: a model's weights onto drives, as the first commit of a durable job.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use half::bf16;

use optswap::internals::checkpoint::ModelFiles;
use optswap::internals::config::{Config, Durability};
use optswap::internals::coord::{Communicator, agree};
use optswap::internals::error::{Error, Result};
use optswap::internals::partition::Run;
use optswap::internals::step::{CreateOptions, NoParameters, SwappedOptimizer};
use optswap::internals::units::Bytes;
use optswap_args::{SwapArgs, bytes_bar, say};

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    pub swap: SwapArgs,

    /// The model: a safetensors file, an index of several (`model.safetensors.index.json`), or a
    /// directory that holds either; the index decides where it holds both.
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
}

pub(super) fn run(args: &InitArgs, comm: &Arc<dyn Communicator>) -> Result<()> {
    let opened = resolve(args).and_then(|config| Ok((config, ModelFiles::open(&args.from)?)));
    let (config, model) = agree(&**comm, opened)?;
    let inventory = model.inventory().clone();
    let mut optimizer =
        SwappedOptimizer::create(&config, inventory, Arc::clone(comm), CreateOptions::default())?;
    agree(&**comm, refuse_committed(&optimizer))?;
    let bar = bytes_bar("initialising", comm.rank().0 == 0);
    let (mut bytes, all_bytes) = (0, 4 * optimizer.partition().elems());
    let fill = |run: &Run, masters: &mut [f32]| {
        model.read(run.param, run.param_offset, masters)?;
        bytes += 4 * run.elems;
        bar(bytes, all_bytes);
        Ok(())
    };
    if optimizer.plan().is_halved() {
        let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
        optimizer.initialize_parameters(&mut params, fill)?;
    } else {
        optimizer.initialize_parameters(&mut NoParameters, fill)?;
    }
    // Dropped, not closed: what is committed stays.
    if comm.rank().0 == 0 { print_summary(&optimizer, &model, &config) } else { Ok(()) }
}

/// What has been trained is not begun again.
fn refuse_committed(optimizer: &SwappedOptimizer) -> Result<()> {
    let Some(resumed) = optimizer.resumed() else { return Ok(()) };
    Err(Error::usage("the job has committed steps already")
        .with("job", &optimizer.plan().config().job)
        .with("step", resumed.attempt)
        .hint("give this one another name with --job, or remove it: optswap clean --remove"))
}

/// The configuration, for a durable job: what does not survive the process need not be written.
fn resolve(args: &InitArgs) -> Result<Config> {
    let mut config = args.swap.resolve()?;
    config.durability.mode = Durability::Step;
    Ok(config)
}

fn print_summary(optimizer: &SwappedOptimizer, model: &ModelFiles, config: &Config) -> Result<()> {
    let inventory = model.inventory();
    say(format_args!(
        "{} parameters, {} elements, {} on {} drives of this rank; job `{}`, epoch 0",
        inventory.parameters().len(),
        inventory.total_elems(),
        Bytes(optimizer.plan().placement().drive_bytes().iter().sum()).human(),
        config.drives.paths.len(),
        config.job,
    ))?;
    model.notes().iter().try_for_each(say)?;
    say(format_args!(
        "a training program with --job {} --durability step, the same drives and number of ranks \
         goes on from here",
        config.job
    ))
}
