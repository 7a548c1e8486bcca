//! The optimizer: its kind, and the hyper-parameters that the class which DeepSpeed takes for it
//! has by default.

use serde_json::Value;

use super::check::is_auto;
use super::keys::{self, Key};
use super::{DEFAULT, Import};
use crate::error::{Error, Result};
use crate::state::OptimizerKind;

/// What DeepSpeed takes out of the parameters of Adam before its class sees them.
const TAKEN_OUT: [&str; 3] = ["torch_adam", "adam_w_mode", "fp32_optimizer_states"];
/// What it gives that class itself.
const GIVEN: &str = "adamw_mode";

impl Import {
    pub(super) fn clipping(&mut self) -> Result<()> {
        let key = "gradient_clipping";
        let ours = self.config.optimizer.clip_norm;
        // Truth values are numbers in Python.
        let number = |value: &Value| {
            value.as_f64().or_else(|| value.as_bool().map(|flag| f64::from(u8::from(flag))))
        };
        let is_given = self.value_at(key)?.is_some();
        let (norm, origin) = match self.take(key, "a number", number)? {
            Some(norm) => (norm, key),
            None if is_given => return Ok(()),
            None => {
                let norm = keys::default_of(key).and_then(Value::as_f64).unwrap_or(ours);
                let text = format!("absent: DeepSpeed's default {norm} is taken, not {ours}");
                self.note(key, text);
                (norm, DEFAULT)
            }
        };
        // DeepSpeed clips to norms above 0 alone.
        self.config.optimizer.clip_norm = norm.max(0.0);
        self.comes_from("optimizer.clip_norm", origin);
        Ok(())
    }

    pub(super) fn optimizer(&mut self) -> Result<()> {
        let has_section = self.object_at("optimizer")?.is_some();
        let name = self.value_at("optimizer.type")?.filter(|name| !name.is_null()).cloned();
        let Some(name) = name else {
            let why = if has_section { "without `type`" } else { "absent" };
            let text = format!(
                "{why}: DeepSpeed takes the program's optimizer, and optswap AdamW with its own \
                 defaults"
            );
            self.note("optimizer", text);
            return Ok(());
        };
        let (kind, class) = self.class(&name)?;
        self.refuse_arguments(&name, class)?;
        self.config.optimizer.kind = kind;
        self.comes_from("optimizer.kind", "optimizer.type");
        let ours = self.config.optimizer.clone();
        let mut betas = ours.betas;
        if let Some(lr) = self.argument(class, "lr", "optimizer.lr", ours.lr)? {
            self.config.optimizer.lr = lr;
        }
        if let Some(eps) = self.argument(class, "eps", "optimizer.eps", ours.eps)? {
            self.config.optimizer.eps = eps;
        }
        let target = "optimizer.weight_decay";
        if let Some(decay) = self.argument(class, "weight_decay", target, ours.weight_decay)? {
            self.config.optimizer.weight_decay = decay;
        }
        if let Some(momentum) = self.argument(class, "momentum", "optimizer.betas", betas[0])? {
            betas[0] = momentum;
        }
        if let Some(default) = keys::arguments(class).find(|key| key.place().1 == "betas") {
            let key = "optimizer.params.betas";
            let is_given = self.value_at(key)?.is_some();
            if let Some(given) = self.take(key, "a list of two numbers", to_betas)? {
                betas = given;
                self.comes_from("optimizer.betas", key);
            } else if !is_given {
                betas = default.default.as_ref().and_then(to_betas).unwrap_or(betas);
                self.comes_from("optimizer.betas", DEFAULT);
            }
        }
        self.config.optimizer.betas = betas;
        Ok(())
    }

    /// The kind of optimizer, and the class that DeepSpeed builds for it. `Adam` means AdamW,
    /// unless `adam_w_mode` is false.
    fn class(&mut self, name: &Value) -> Result<(OptimizerKind, &'static str)> {
        let Some(name) = name.as_str() else {
            return Err(super::wrong_value("optimizer.type", "a string", name));
        };
        let is_offloaded = self.is_offloaded()?;
        let lower = name.to_lowercase();
        let mut truth = |key: &str| self.flag(&format!("optimizer.params.{key}"));
        Ok(match (&*lower, is_offloaded) {
            ("adam" | "adamw", _) => {
                let is_adamw = truth("adam_w_mode")? != Some(false) || lower == "adamw";
                let kind = if is_adamw { OptimizerKind::AdamW } else { OptimizerKind::Adam };
                let class = match (truth("torch_adam")?, is_adamw) {
                    (Some(true), true) => "torch_AdamW",
                    (Some(true), false) => "torch_Adam",
                    _ if is_offloaded => "DeepSpeedCPUAdam",
                    _ => "FusedAdam",
                };
                (kind, class)
            }
            ("lion", true) => (OptimizerKind::Lion, "DeepSpeedCPULion"),
            ("lion", false) => (OptimizerKind::Lion, "FusedLion"),
            ("adagrad", true) => (OptimizerKind::Adagrad, "DeepSpeedCPUAdagrad"),
            ("adagrad", false) => (OptimizerKind::Adagrad, "torch_Adagrad"),
            // A name of torch's, in which capitals count.
            _ if name == "SGD" => (OptimizerKind::Sgd, "torch_SGD"),
            _ => {
                let known = "optswap has AdamW, Adam, SGD, Lion and Adagrad";
                let hint = match &*lower {
                    "sgd" => "DeepSpeed knows this one as `SGD` only",
                    _ => "write one of these, or leave `optimizer` out to take AdamW's defaults",
                };
                let message = format!("`optimizer.type` is `{name}`: {known}");
                return Err(Error::usage(message).hint(hint));
            }
        })
    }

    /// Refuses arguments that the class does not have, which end a job of DeepSpeed at its start.
    fn refuse_arguments(&self, name: &Value, class: &'static str) -> Result<()> {
        let Some(params) = self.object_at("optimizer.params")? else { return Ok(()) };
        if params.contains_key("max_grad_norm") {
            return Err(Error::usage("`optimizer.params.max_grad_norm` is not DeepSpeed's")
                .hint("write `gradient_clipping` beside `optimizer`"));
        }
        let is_adam = name.as_str().is_some_and(|name| name.to_lowercase().starts_with("adam"));
        let taken_out = TAKEN_OUT.into_iter().filter(|_| is_adam);
        let arguments = keys::arguments(class).map(|key| key.place().1);
        let mut known: Vec<&str> = arguments.filter(|it| *it != GIVEN).chain(taken_out).collect();
        known.sort_unstable();
        known.dedup();
        let Some(unknown) = params.keys().find(|key| !known.contains(&&***key)) else {
            return Ok(());
        };
        let similarity = |name: &str| strsim::jaro_winkler(name, unknown);
        let near = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        let hint = match near.filter(|near| similarity(near) > 0.85) {
            Some(near) => format!("did you mean `optimizer.params.{near}`?"),
            None => format!("it has {}", known.join(", ")),
        };
        let class = class.replace("torch_", "torch.optim.");
        let message = format!(
            "`optimizer.params.{unknown}` is no argument of {class}, which DeepSpeed builds for \
             {name}"
        );
        Err(Error::usage(message).hint(hint))
    }

    /// The value of an argument that the class has; if it is absent, the class's default.
    fn argument(
        &mut self,
        class: &'static str,
        name: &str,
        target: &str,
        ours: f64,
    ) -> Result<Option<f64>> {
        let Some(argument) = keys::arguments(class).find(|key| key.place().1 == name) else {
            return Ok(None);
        };
        let key = format!("optimizer.params.{name}");
        if let Some(value) = self.value_at(&key)? {
            let is_auto = is_auto(value);
            let value = self.float(&key)?;
            if !is_auto {
                self.comes_from(target, key);
            }
            return Ok(value);
        }
        let Some(default) = number_of(argument) else { return Ok(None) };
        self.comes_from(target, DEFAULT);
        if default != ours {
            let text = format!("absent: DeepSpeed's default {default} is taken, not {ours}");
            self.note(&key, text);
        }
        Ok(Some(default))
    }
}

fn number_of(key: &Key) -> Option<f64> {
    key.default.as_ref().and_then(Value::as_f64)
}

fn to_betas(value: &Value) -> Option<[f64; 2]> {
    match value.as_array()?.as_slice() {
        [first, second] => Some([first.as_f64()?, second.as_f64()?]),
        _ => None,
    }
}
