"""A queue of jobs with priorities and retries."""

from jobs.queue import Job, JobQueue

__all__ = ["Job", "JobQueue"]
