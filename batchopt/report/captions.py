"""How to read each figure of the report, by the figure's name."""

from __future__ import annotations

HOW_TO_READ = {
    "noise-scale": (
        "Each point is the gradient noise scale at frozen weights with its 90 % interval: batches far smaller than "
        "it average mostly noise, batches far larger waste examples. An arrow is a lower bound only. Where the "
        "trend's band widens, it is extrapolated."
    ),
    "loss-curves": (
        "A panel for each batch size; the lighter a line, the higher its learning rate. Solid lines are measured, "
        "dashed ones are what the forecast says of the same runs: where the two part, the forecast does not describe "
        "this training. Dotted lines are cooldowns: off the end of a run the learning rate falls to zero. The grey "
        "line is the loss at initialisation. Most measured points are mean losses of training batches."
    ),
    "spending": (
        "Examples that got a gradient in each part of the probe; forward passes for an evaluation count a third."
    ),
    "forecast": (
        "At the critical batch size a run takes twice the fewest steps and twice the fewest examples. Below it, a "
        "larger batch saves time almost for free; above it, it mostly costs compute. The blue line is for a whole "
        "run that ends at the loss, the orange one for the training that happens there, which a schedule follows. "
        "Dotted stretches are unresolved."
    ),
    "plan-cost": (
        "What the plan chose by, with its 90 % band. The errors of neighbouring batch sizes go together, so their "
        "order is better known than their height. A flat bottom means that the neighbours are as good."
    ),
    "tradeoff": (
        "Each point is a batch size at its best learning rate. Left is less compute, down is fewer sequential "
        "steps; no batch size gives both. The star is the plan, the diamond the critical batch size."
    ),
    "schedule": (
        "The batch size of a step is the one in force when the step begins; the learning rate, with its warm-up and "
        "decay, is shown below it."
    ),
    "training": (
        "The band holds nine of ten single runs by the plan's own schedule; the dashed line is where the plan lets the "
        "learning rate decay, the dotted one the loss to reach. A run that decides itself when to decay leaves the "
        "band where it goes on longer."
    ),
    "study": (
        "Each mark is a trial. A filled point was trained to its end, its colour is the value; a cross was pruned "
        "while running; a hollow diamond was pruned before it cost anything. Point at a mark for its reason."
    ),
    "study-history": (
        "How fast the study improved on its best trial. What pruned trials spent is counted in the training."
    ),
}
