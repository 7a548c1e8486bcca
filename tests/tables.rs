//! What a rank keeps of its chunks, stripe units and pieces: how many bytes that is, and that the
//! formula which the start prints knows it.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/allocations.rs"]
mod allocations;
mod support;

use std::sync::Arc;

use allocations::{counted, held_by_process};
use optswap::internals::config::{Durability, EngineName, GradientPlace};
use optswap::internals::partition::Allotment;
use optswap::{Bytes, Config, Elems, Inventory, Parameter, Plan, Solo};
use support::world::{config_for, start};
use support::{Drives, one_at_a_time};

/// A model of layers of 256 Mi elements, on eight drives of a durable job.
fn plan_of(gi_elems: u64) -> Plan {
    let layer = |number| Parameter::new(format!("layer{number}.weight"), [16384, 16384]);
    let inventory = Inventory::new((0..4 * gi_elems).map(layer).collect()).unwrap();
    let mut config = Config::default();
    config.drives.paths = (0..8).map(|drive| format!("/nvme{drive}/me").into()).collect();
    config.durability.mode = Durability::Step;
    Plan::resolve(&config, inventory, &Allotment::contiguous(0, 1)).unwrap()
}

#[test]
fn the_plan_of_a_large_shard_takes_little_memory() {
    let _turn = one_at_a_time();
    println!("| elements | plan holds | most meanwhile | all tables, by formula |");
    for gi_elems in [1, 10, 100] {
        let (plan, held, most) = counted(|| plan_of(gi_elems));
        let tables = plan.table_bytes() as isize;
        println!("| {gi_elems} Gi | {held} B | {most} B | {tables} B |");
        assert!(held < tables, "the formula has tables that the plan has not");
        assert!(held > tables / 2, "most tables are the plan's");
        assert!(most < (64 << 20), "{most} bytes for {gi_elems} Gi elements");
        assert!(tables < (64 << 20), "{tables} bytes for {gi_elems} Gi elements");
        assert!(plan.to_string().contains("of tables"), "{plan}");
    }
}

/// The blocks of the norm follow from the shard's pieces, and so do their parts for threads.
#[test]
fn blocks_of_the_norm_are_not_kept() {
    let _turn = one_at_a_time();
    let plan = plan_of(100);
    let (parts, held, most) = counted(|| {
        let spans = plan.norm_blocks().spans();
        spans.iter().map(|span| span.part_count()).sum::<usize>()
    });
    assert_eq!(parts, 100 << 12, "of 256 Ki elements each");
    assert!(held == 0 && most < 1024, "{most} bytes");
}

/// What one rank holds after its start, more chunks against fewer, beside what the formula says.
#[test]
fn the_formula_knows_the_tables_of_a_rank() {
    let _turn = one_at_a_time();
    let jobs = [
        (Durability::Scratch, GradientPlace::Caller),
        (Durability::Step, GradientPlace::Caller),
        (Durability::Step, GradientPlace::Drives),
    ];
    for (mode, place) in jobs {
        let held = |chunks: u64| {
            let drives = Drives::new(2);
            let mut config = config_for(&drives);
            (config.durability.mode, config.gradients.place) = (mode, place);
            config.io.engine = EngineName::Threads;
            config.swap.sub_group_elements = Elems(4096);
            config.swap.memory_budget = Bytes(1 << 20);
            let before = held_by_process();
            let optimizer = start(&config, &[4096 * chunks as usize], Arc::new(Solo::default()));
            let optimizer = optimizer.unwrap();
            (held_by_process() - before, optimizer.plan().table_bytes() as isize)
        };
        // The first start also makes what a process has once.
        let [_, few, many] = [64, 256, 2048].map(held);
        let (grown, told) = (many.0 - few.0, many.1 - few.1);
        println!("{mode:?}, {place:?}: {grown} B for 1792 chunks more, {told} B by the formula");
        let ratio = grown as f64 / told as f64;
        assert!((0.8..1.1).contains(&ratio), "{mode:?}, {place:?}: {grown} B, told {told} B");
    }
}
