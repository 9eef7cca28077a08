"""How well the encoder of a run tracks, while it trains: J&F and PCK of a few labelled videos."""

from typing import NamedTuple

from sslzoo.evaluation.jhmdb import is_jhmdb
from sslzoo.evaluation.subject import Common
from sslzoo.evaluation.tracking import score_sequence
from sslzoo.evaluation.tracking_data import keypoints, labelled_videos, true_masks
from sslzoo.evaluation.tracking_rows import follow, mask_rows, pck_rows
from sslzoo.tracker import Tracker
from sslzoo.tracking_config import TrackerConfig

LOGGED = {"J&F", "J", "F", "PCK@0.1", "PCK@0.2", "PCK@0.5"}


class InTraining(NamedTuple):
    """What a tracker reads of a Subject, of an encoder that is no file yet."""

    backbone: object
    about: dict
    device: object
    source: str
    common: object = Common()

    @property
    def view(self):
        return tuple(self.about[name] for name in ("image_size", "mean", "std"))


class LiveTracking:
    """Labelled videos, which are read once, and what an encoder makes of them.

    Args:
        setup: sslzoo.training.Setup; its config names the videos.

    Raises:
        DataError: they can not be used; said before training.
    """

    def __init__(self, setup):
        config, self.setup = setup.config, setup
        path = config.tracking_data or config.data
        _, self.videos = labelled_videos(path)
        self.truth = true_masks(path, self.videos)
        source = config.tracking_keypoints or (path if is_jhmdb(path) else "")
        self.joints, _ = keypoints(source, self.videos)

    def scores(self, backbone):
        """{"tracking_J&F": ...} by the protocol "dino", as `sslzoo evaluate tracking` has them.

        Args:
            backbone: the encoder; a method that embeds videos itself is judged by its embeddings.
        """
        method, about = self.setup.whole, self.setup.about
        was_training = method.training
        method.eval()
        embeds = hasattr(method, "embed_video")
        subject = InTraining(backbone, about, self.setup.device, f"{about['method']} in training")
        tracker = Tracker(subject, None, TrackerConfig(size=self.setup.config.tracking_size),
                          method if embeds else None)  # fmt: skip
        scores, places = {}, []
        for name, video in self.videos.items():
            joints, true = self.joints.get(name), self.truth.get(name)
            masks, tracked = follow(tracker, video, None if true is None else true[0], joints)
            if masks is not None:
                scores[name] = score_sequence(masks.numpy(), true.numpy())
            places += [] if tracked is None else [(tracked, joints[1][1:])]
        method.train(was_training)
        rows = (mask_rows("", scores) if scores else []) + pck_rows("", places)
        return {f"tracking_{row.metric}": row.value for row in rows if row.metric in LOGGED}
