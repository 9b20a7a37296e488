"""To Kaggle: a kernel that carries the library, pushed once or until its run is finished."""
