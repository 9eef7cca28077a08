"""One file per method. What a file `sslzoo/methods/<name>.py` holds:

Config      a dataclass of the method's own options; every field has a default and a docstring that
            gives its unit. No name of sslzoo.training.TrainingConfig is used twice.
DEFAULTS    a dict of the TrainingConfig fields that the method wants to be different.
DATA        the kind of data, a name of sslzoo.kinds.KINDS, or a tuple of several, of which the
            backbone takes one; "images" where it is missing
views       views(config, image_size) -> list of sslzoo.views.ViewSpec, one per view of an image;
            where DATA is a tuple, views(config, image_size, kind)
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
IS_NORMALISED   False where views, and the backbone's images, are RGB from 0 to 1 as they are
build_backbone  build_backbone(name, image_size=, channels=): instead of sslzoo.backbones.build
backbone_options  backbone_options(config, name) -> further options of sslzoo.backbones.build, such
            as LayerScale; kept beside the weights, so that they load without the method

and in the nn.Module

    embed(views, step), contrast(embeddings, step)   the two halves of forward, for losses between
                              the samples of a batch: --accumulate then gives the loss of all
                              batches together (sslzoo.gradient_cache says what they hold)
    sync_batch_norm = False   several processes keep batch norms of their own; else they share one
    whole_only                a reason, in words, why --shard can not divide the method's weights:
                              it uses them outside forward and the hooks named here
    embed_video(frames)       an iterator of embeddings [D, h, w] from one of RGB frames [3, H, W]
                              from 0 to 1: what masks and keypoints are tracked by
    survey(batches)           called once before training; batches: an iterator of evaluation
                              views [B, C, S, S] of up to 10,000 training images, normalised as
                              the views are. For constants of the data, kept in buffers

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
    normalised_by(mean, std)  called once, before training: the channel statistics of the views, for
                              methods whose formulas speak of pixels
    test_scores(views, step)  a dict of 0-d tensors, averaged over the test split and logged as
                              test_NAME; called without gradient and in evaluation mode, every
                              `test_every` epochs and at the last step
    sees_parts                True where the backbone is trained on parts of images: before it is
                              judged or saved, its batch-norm statistics are taken from whole views
    pictures(views)           {name: uint8 [3, H, W] on the CPU}, for people to look at; called
                              without gradient and in evaluation mode, at the end of a run and
                              every `pictures_every` epochs; saved as pictures/NAME_EPOCH.png
"""
