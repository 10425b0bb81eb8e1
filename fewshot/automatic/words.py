"""What each method does, for whoever has photos and no use for papers."""

from collections.abc import Mapping

GLOSSES: Mapping[str, str] = {
    "zero-shot": "Compares a photo with the names of the classes. Learns nothing from your labels.",
    "nearest-mean": "Averages your photos of each class and picks the class whose average is "
    "nearest. Class names play no part.",
    "gda": "Takes each class for a cloud of photos, all clouds of one shape, and adds what the "
    "class names say.",
    "ridge": "Starts from the class names and shifts them no further than your photos demand.",
    "proker": "Learns from your photos where the class names go wrong, and corrects for that.",
    "tip-adapter": "Lets your photos vote for their classes, by their likeness to the new one, on "
    "top of the class names.",
    "tip-adapter-f": "As tip-adapter, with the remembered photos adjusted by training.",
    "tip-x": "As tip-adapter, with a second vote by how photos relate to the class names.",
    "ape": "As tip-adapter, on those features only that tell your classes apart.",
    "ape-t": "As ape, with a small correction for each class found by training.",
    "linear-probe": "Draws straight borders between the classes in feature space (logistic "
    "regression). Class names play no part.",
    "text-probe": "Draws straight borders that start where the class names put them.",
    "lp++": "Straight borders plus a share of what the class names say, found for each class.",
    "zs-lp": "Starts with the class names as the classes' middles and trains them on your photos.",
    "clap": "As zs-lp, holding each class near its name as far as the name deserves it.",
    "cross-modal": "Takes the class names for further labeled examples, and draws straight "
    "borders.",
    "taskres": "Learns a correction to each class name.",
    "clip-adapter": "Trains a small network that adjusts the features to your classes.",
}
