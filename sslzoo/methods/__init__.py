"""One file per method. What a file `sslzoo/methods/<name>.py` holds:

Config      a dataclass of the method's own options; every field has a default and a docstring that
            gives its unit. No name of sslzoo.training.TrainingConfig is used twice.
DEFAULTS    a dict of the TrainingConfig fields that the method wants to be different.
views       views(config, image_size) -> list of sslzoo.views.ViewSpec, one per view of an image.
the method  an nn.Module called like the file (simclr.py: SimCLR, moco_v3.py: MoCoV3), made by
            SimCLR(backbone, config), that any loop can train:

    .backbone                 what is evaluated and saved; backbone(x) [N, C, H, W] -> [N, d]
    forward(views, step)      a dict: "loss", 0-d, with gradient; other 0-d tensors, averaged and
                              logged; "features" [rows, d], detached: the backbone's output, for
                              the collapse meters; any other tensor, detached, for meters()

and, where it wants them,

    meters(outputs)           a dict of 0-d tensors from what forward returned; called without
                              gradient at log steps only, so it may cost something
    after_step(step)          called after every optimizer step: moving averages, queues
    parameter_groups(decay)   the optimizer's groups; else sslzoo.optimizers.parameter_groups. A
                              group's "lr_scale" multiplies the learning rate
"""
