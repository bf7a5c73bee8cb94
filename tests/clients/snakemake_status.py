#!/usr/bin/env python3
"""Status command for Snakemake: one word about a job from Torque's XML; stderr counts as output."""

import subprocess
import sys
from xml.etree import ElementTree

asked = subprocess.run(
    ["qstat", "-f", "-x", sys.argv[1]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
)
job = ElementTree.fromstring(asked.stdout)
if job.findtext(".//job_state") != "C":
    print("running")
else:
    print("success" if job.findtext(".//exit_status") == "0" else "failed")
