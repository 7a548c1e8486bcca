"""What DeepSpeed itself knows of its configuration, asked without torch, which is not installed.

    target/python/bin/python tests/data/deepspeed_keys.py table > src/config/deepspeed/keys.tsv
    target/python/bin/python tests/data/deepspeed_keys.py verdicts < texts.json

`launch/test` installs what is needed: deepspeed (without what that needs itself), hjson, pydantic.
`table` prints every key: path, type, bounds, default, and the name that replaced it. `values` and
`verdicts` read a JSON list of texts; they print what hjson reads, and what DeepSpeed makes of that.
DeepSpeed's own classes run; torch and the parts of DeepSpeed that compute are stand-ins.
"""

import ast
import enum
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types
import typing

STAND_INS = (
    "torch numpy packaging psutil tqdm deepspeed.accelerator deepspeed.comm.comm deepspeed.ops "
    "deepspeed.module_inject deepspeed.runtime.utils deepspeed.utils.logging "
    "deepspeed.utils.torch deepspeed.utils.nvtx deepspeed.git_version_info"
).split()
# Packages that would import everything: of these, modules are real and names are stand-ins.
HOLLOW = (
    "deepspeed deepspeed.compression deepspeed.inference deepspeed.runtime deepspeed.runtime.zero "
    "deepspeed.utils"
).split()
OPTIMIZERS = {
    "DeepSpeedCPUAdam": "adam/cpu_adam.py",
    "FusedAdam": "adam/fused_adam.py",
    "DeepSpeedCPULion": "lion/cpu_lion.py",
    "FusedLion": "lion/fused_lion.py",
    "DeepSpeedCPUAdagrad": "adagrad/cpu_adagrad.py",
}
# Those of torch 2.9, which DeepSpeed takes in some cases.
OF_ALL = dict(foreach=None, maximize=False, differentiable=False, fused=None)
OF_ADAM = dict(lr=1e-3, betas=[0.9, 0.999], eps=1e-8, amsgrad=False, capturable=False, **OF_ALL)
TORCH_OPTIMIZERS = {
    "torch_AdamW": dict(weight_decay=0.01, **OF_ADAM),
    "torch_Adam": dict(weight_decay=0, decoupled_weight_decay=False, **OF_ADAM),
    "torch_Adagrad": dict(
        lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10, **OF_ALL
    ),
    "torch_SGD": dict(lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, **OF_ALL),
}
PROBE = "a_key_that_deepspeed_does_not_have"


class Anything(type):
    """A class whose every attribute is such a class, and whose objects are called as decorators."""

    def __new__(cls, name, bases=(), body=()):
        call = lambda self, *args, **kwargs: args[0] if args else self
        get = lambda self, name: getattr(type(self), name)
        known = dict(__init__=lambda *args, **kwargs: None, __call__=call, __getattr__=get)
        return super().__new__(cls, name, bases, {**known, **dict(body)})

    def __init__(cls, name, bases=(), body=()):
        pass

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, Anything(name))
        return cls.__dict__[name]


class StandIn(types.ModuleType):
    __path__ = []
    __version__ = "2.9.0"
    __all__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, Anything(name))
        return self.__dict__[name]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name in HOLLOW or any(name == it or name.startswith(it + ".") for it in STAND_INS):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = StandIn(spec.name)
        if spec.name in HOLLOW:
            module.__path__ = [str(self.packages.joinpath(*spec.name.split(".")))]
        return module

    def exec_module(self, module):
        pass


def deepspeed_config(packages):
    """The module deepspeed.runtime.config."""
    Finder.packages = packages
    sys.meta_path.insert(0, Finder())
    import torch

    torch.dtype = Anything  # of which torch.float16 is one
    import deepspeed.runtime.config

    return deepspeed.runtime.config


class Found(BaseException):
    """Thrown by the class that is given the probe."""


class Watched(dict):
    """A section that notes which of its keys are asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = {}

    def get(self, key, default=None):
        if self.asked.get(key) is None:
            self.asked[key] = default
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.setdefault(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked.setdefault(key)
        return super().__getitem__(key)

    def keys(self):
        return self

    def __copy__(self):
        return self


def section_at(config, path):
    """What a path is: a class of pydantic's, a list of the keys that are asked for, or None."""
    # A key that is given by another name of its section may be needed to get there.
    inner = Watched({PROBE: 1, "mode": "fixed", "type": "AdamW"} if path else {})
    root = inner if not path else Watched()
    outer = root
    for name in path[:-1]:
        outer[name] = Watched()
        outer = dict.get(outer, name)
    if path:
        outer[path[-1]] = inner
    dict.__setitem__(root, "train_batch_size", 1)
    try:
        config.DeepSpeedConfig(root)
    except Found as found:
        return found.args[0]
    except Exception:
        if not path:
            raise
    inner.asked.pop(PROBE, None)
    return inner.asked or None


def type_of(annotation):
    """The name of a type, `?` behind it if it may be null."""
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Union:
        names = [type_of(it) for it in arguments if it is not type(None)]
        return "|".join(names) + ("?" if type(None) in arguments else "")
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        kind = "enum" if issubclass(origin, str) else "stage"
        return kind + ":" + ",".join(dict.fromkeys(str(it.value) for it in origin))
    if origin is list and arguments:
        words = typing.get_args(arguments[0]) or ["str"]
        return "list:" + ",".join(words)
    if origin is typing.Literal or origin is typing.Any or origin is object:
        return "any"
    return {pathlib.Path: "str", bool: "bool", int: "int", float: "float", str: "str"}.get(
        origin, {list: "list", dict: "dict", tuple: "list"}.get(origin, "any")
    )


def rows_of_class(path, kind, rows):
    import pydantic

    validators = kind.__pydantic_decorators__.field_validators.values()
    checked = {name for it in validators for name in it.info.fields}
    for name, field in kind.model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        inner = [it for it in kinds if isinstance(it, type) and issubclass(it, pydantic.BaseModel)]
        extra = field.json_schema_extra or {}
        bounds = [
            f"{it}={getattr(limit, it):g}"
            for limit in field.metadata
            for it in ("ge", "gt", "le", "lt")
            if hasattr(limit, it)
        ]
        bounds += ["checked"] if name in checked else []
        optional = "?" if type(None) in typing.get_args(field.annotation) else ""
        renamed = extra.get("new_param", "") if extra.get("deprecated") else ""
        for known in dict.fromkeys([field.alias or name, name]):
            where = f"{path}.{known}"
            if inner:
                rows.append([where, "strict" + optional, "", "", renamed])
                rows_of_class(where, inner[0], rows)
            else:
                default = field.get_default(call_default_factory=True)
                kind_name = type_of(field.annotation)
                has_plain = kind_name != "any" and not isinstance(default, (list, dict))
                default = json.dumps(default, default=str) if has_plain else ""
                rows.append([where, kind_name, " ".join(bounds), default, renamed])


def rows_of(config, path, default, rows):
    found = section_at(config, path)
    where = ".".join(path)
    if isinstance(found, type):
        rows.append([where, "strict", "", "", ""])
        rows_of_class(where, found, rows)
    elif found is None or len(path) > 2:
        given = isinstance(default, (bool, int, float, str))
        rows.append([where, "plain", "", json.dumps(default) if given else "", ""])
    else:
        if path:
            rows.append([where, "open", "", "", ""])
        for key, default in found.items():
            rows_of(config, path + [key], default, rows)


def rows_of_optimizer(packages, rows):
    """The arguments of the optimizers that DeepSpeed builds, read from its source."""
    for name, module in OPTIMIZERS.items():
        tree = ast.parse((packages / "deepspeed/ops" / module).read_text())
        kind = next(it for it in tree.body if isinstance(it, ast.ClassDef) and it.name == name)
        methods = (it for it in kind.body if isinstance(it, ast.FunctionDef))
        init = next(it for it in methods if it.name == "__init__")
        names = [it.arg for it in init.args.args][-len(init.args.defaults) :]
        for argument, default in zip(names, init.args.defaults):
            default = json.dumps(ast.literal_eval(default))
            rows.append([f"{name}.{argument}", "argument", "", default, ""])
    for name, arguments in TORCH_OPTIMIZERS.items():
        for argument, default in arguments.items():
            rows.append([f"{name}.{argument}", "argument", "", json.dumps(default), ""])


def table(packages, config):
    base = config.DeepSpeedConfigModel
    plain_init = base.__init__

    def watching_init(self, strict=False, **data):
        if PROBE in data:
            raise Found(type(self))
        plain_init(self, strict=strict, **data)

    base.__init__ = watching_init
    rows = []
    rows_of(config, [], None, rows)
    rows_of_optimizer(packages, rows)
    version = importlib.metadata.version("deepspeed")
    print(f"# The keys of DeepSpeed {version}, as tests/data/deepspeed_keys.py prints them.")
    print("# path, type, bounds, default, replaced by")
    for row in sorted(rows):
        print("\t".join(row).rstrip())


def plain(value):
    """A value as JSON has it."""
    if hasattr(value, "model_dump"):
        names = (name for name in type(value).model_fields if hasattr(value, name))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, pathlib.Path):
        return str(value)
    return value


def read(config, text):
    """A text as DeepSpeed reads a file, with universal newlines."""
    import hjson

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    hook = config.dict_raise_error_on_duplicate_keys
    try:
        return {"value": hjson.loads(text, object_pairs_hook=hook)}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def verdict(config, text):
    """What DeepSpeed makes of a text: its sections that concern optimizer state, or its error."""
    given = read(config, text)
    if "refused" in given:
        return given
    given = given["value"]
    try:
        if isinstance(given, dict) and "train_micro_batch_size_per_gpu" not in given:
            given = {"train_batch_size": 1, **given}
        made = config.DeepSpeedConfig(given)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {
        "zero_optimization": plain(made.zero_config),
        "fp16": plain(made.float16_config),
        "bf16": plain(made.bfloat16_config),
        "gradient_clipping": made.gradient_clipping,
    }


def main():
    what = sys.argv[1]
    packages = pathlib.Path(importlib.util.find_spec("deepspeed").origin).parent.parent
    config = deepspeed_config(packages)
    config.dist = types.SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 1)
    silent = lambda *_: None
    config.logger = types.SimpleNamespace(info=silent, warning=silent, error=silent)
    if what == "table":
        return table(packages, config)
    answer = {"values": read, "verdicts": verdict}[what]
    json.dump([answer(config, text) for text in json.load(sys.stdin)], sys.stdout, default=str)


main()
