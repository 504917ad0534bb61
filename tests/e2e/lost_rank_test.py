"""A rank that is killed in the middle of a run, where mpirun leaves the others alive: they end with
an error that is worth a retry, and do not hang."""

import json

import harness

# mpirun ends all ranks when one dies; with this it leaves that to them, as where a node is cut off.
RECOVERY = "--enable-recovery"
# Two ranks on one card must not look like two devices of one process to NCCL.
AS_HOST = 'NCCL_HOSTID=rank-$OMPI_COMM_WORLD_RANK exec "$0" "$@"'


class LostRank(harness.TestCase):
    def reason_after_the_death_of_rank_one(self, device):
        """What rank 0 says at its end after rank 1 has died before step 4."""
        folder = self.folder / device
        environment = {"ELA_FAULT": "kill:1:4", "ELA_COMM_TIMEOUT_SECONDS": "5"}
        harness.run("mpirun.openmpi", RECOVERY, "-n", 2, "--oversubscribe", "--bind-to", "none",
                    "sh", "-c", AS_HOST, harness.BIN / "ela-trainer", "--job", self.job_file(),
                    "--run-dir", folder, "--metrics-address", "", "--set",
                    f"resources.device={device}", env=environment)
        record = json.loads((folder / "exit.json").read_text())
        self.assertEqual((record["exit_code"], record["outcome"]), (1, "infra"), record)
        return record["reason"]

    def test_the_others_end_with_an_error_on_the_cpu(self):
        self.assertIn("rank 1", self.reason_after_the_death_of_rank_one("cpu"))

    def test_the_others_end_with_an_error_on_a_card(self):
        if not harness.has_card():
            self.skipTest("no card: nvidia-smi finds none")
        self.assertRegex(self.reason_after_the_death_of_rank_one("cuda"), "rank 1|NCCL")


def tearDownModule():
    harness.Corpus.remove()


if __name__ == "__main__":
    harness.main()
