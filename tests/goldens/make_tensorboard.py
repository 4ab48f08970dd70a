"""Writes events.bin with TensorBoard's own messages and record writer, and reads it back: pip install tensorboard."""

import os
import sys

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = os.path.join(HERE, "tensorboard", "events.bin")


def scalars(wall_time, step, values):
    event = event_pb2.Event(wall_time=wall_time, step=step)
    for tag, value in values:
        event.summary.value.add(tag=tag, simple_value=value)
    return event


def main():
    events = [event_pb2.Event(wall_time=1.5e9, file_version="brain.Event:2")]
    start = event_pb2.Event(wall_time=1.5e9, step=3)
    start.session_log.status = event_pb2.SessionLog.START
    events.append(start)
    events.append(scalars(1.5e9 + 0.25, 3, [("train/loss", 2.5), ("train/grad_norm", 0.125)]))
    events.append(scalars(1.5e9 + 1.0, 300, [("eval/loss", -1.0)]))
    with open(PATH, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
    for event in EventFileLoader(PATH).Load():
        print(event)


if __name__ == "__main__":
    sys.exit(main())
