import unittest

from jobs import Job, JobQueue


class JobQueueTest(unittest.TestCase):
    def test_runs_in_order_of_arrival(self):
        queue = JobQueue()
        queue.add(Job("first", lambda: 1))
        queue.add(Job("second", lambda: 2))
        self.assertEqual([queue.run_next(), queue.run_next()], [1, 2])

    def test_runs_the_highest_priority_first(self):
        queue = JobQueue()
        queue.add(Job("low", lambda: "low", priority=1))
        queue.add(Job("high", lambda: "high", priority=9))
        self.assertEqual(queue.run_next(), "high")

    def test_gives_up_after_the_last_attempt(self):
        queue = JobQueue(max_attempts=2)
        queue.add(Job("broken", lambda: 1 / 0))
        queue.run_next()
        queue.run_next()
        self.assertEqual(len(queue), 0)
        self.assertEqual(queue.failed[0][0].name, "broken")

    def test_refuses_to_run_an_empty_queue(self):
        with self.assertRaises(IndexError):
            JobQueue().run_next()


if __name__ == "__main__":
    unittest.main()
