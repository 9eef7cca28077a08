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

and, where it wants them, in the file

adapt       adapt(config, batch, images) -> (config, reasons): values that follow the images per
            optimizer step and the number of images, and a line in words for each; a value that
            the user gave stays

and in the nn.Module

    meters(outputs)           a dict of 0-d tensors from what forward returned; called without
                              gradient at log steps only, so it may cost something
    after_step(step)          called after every optimizer step: moving averages, queues
    parameter_groups(decay)   the optimizer's groups; else sslzoo.optimizers.parameter_groups. A
                              group's "lr_scale" multiplies the learning rate
    plan(total_steps, steps_per_epoch)  called once before training, also of a resumed run; until
                              then schedules stay at their first value
    schedule(step, groups)    called before every step: sets "weight_decay" and "lr_scale" of the
                              optimizer's groups
    after_backward(step)      called when the gradients are complete: clip or cancel some of them
    pictures(views)           {name: uint8 [3, H, W] on the CPU}, for people to look at; called
                              without gradient and in evaluation mode, at the end of a run and
                              every `pictures_every` epochs; saved as pictures/NAME_EPOCH.png
"""
