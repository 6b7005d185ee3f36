"""Read a bucket of Couchbase's cloud, as in a notebook; a simulated cluster stands in for the real one.

Against your own cluster, the three lines are all there is to it: copy the connection string from the
cluster's Connect page, and allow this machine's address there.
"""

import cbframe
from cbframe.testing import LocalCapella


def main() -> None:
    with LocalCapella(nodes=2, bucket="travel") as capella:
        capella.cluster.load_sample(1000)
        user, password = capella.auth

        # --- three lines: this one, "import cbframe", and what to do with the frame
        df = cbframe.read_bucket("couchbases://cb.local.cloud.couchbase.com/travel", auth=(user, password))
        print(df["type"].value_counts(), end="\n\n")

        # --- where something is wrong, the second line of each notebook
        found = cbframe.doctor("couchbases://cb.local.cloud.couchbase.com/travel", auth=(user, password))
        print(found, end="\n\n")
        print(cbframe.doctor("couchbase://cb.local.cloud.couchbase.com/travel", auth=(user, password)))

    assert found.ok
    assert len(df) > 900
    assert df["type"].nunique() > 3


if __name__ == "__main__":
    main()
