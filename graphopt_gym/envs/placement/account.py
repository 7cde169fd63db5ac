"""The memory account of the classical schedulers, compiled: what each device holds over the graph's own order.

It counts parameters, state, live outputs, and copies of tensors made elsewhere.
``list_scheduling`` says what a unit is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel


class Account(NamedTuple):
    """What each device holds, over time."""

    capacity_bytes: np.ndarray  # int64 [D]
    used: np.ndarray  # int64 [D, B]
    extra: np.ndarray  # int64 [D, B] scratch: what one unit would add
    touched: np.ndarray  # bool [D] scratch
    copy_until: np.ndarray  # int32 [D, T] the last bucket in which a copy is counted, or -1
    undo: np.ndarray  # int64 [., 3] scratch: device, tensor, copy_until before
    fitted: np.ndarray  # int64 [D, U] how many units were placed when a unit was last found to fit
    placed: np.ndarray  # int64 [1] units placed
    added: np.ndarray  # float64 [1] bytes that the last unit looked at would add, over devices and time


@kernel(inner=True)
def open_account(instance, capacity_bytes):
    num_devices, num_buckets = capacity_bytes.shape[0], instance.profile.shape[1]
    return Account(
        capacity_bytes,
        np.zeros((num_devices, num_buckets), np.int64),
        np.zeros((num_devices, num_buckets), np.int64),
        np.zeros(num_devices, np.bool_),
        np.full((num_devices, instance.tensor_bytes.shape[0]), -1, np.int32),
        np.empty((2 * instance.reader.shape[0] + 1, 3), np.int64),
        np.full((num_devices, instance.unit_bytes.shape[0]), -1, np.int64),
        np.zeros(1, np.int64),
        np.zeros(1),
    )


@kernel(inner=True, allocates=False)
def _copy(instance, account, device, tensor, until, undone):
    """Count a copy of a tensor on a device until a bucket, as far as it is not counted yet."""
    counted = account.copy_until[device, tensor]
    if until <= counted:
        return undone
    producer = instance.tensor_task[tensor]
    begin = counted + 1
    if counted == -1 and not instance.is_source[producer]:
        begin = instance.bucket[producer]
    for bucket in range(begin, until + 1):
        account.extra[device, bucket] += instance.tensor_bytes[tensor]
    account.touched[device] = True
    account.undo[undone, 0], account.undo[undone, 1], account.undo[undone, 2] = device, tensor, counted
    account.copy_until[device, tensor] = until
    return undone + 1


@kernel(inner=True, allocates=False)
def charge(instance, account, device_of_unit, unit, device, keep):
    """Bytes above capacity (below: negative), at the worst time and device, were a unit placed on a device.

    Counts what the unit holds, the copies that it needs of tensors made elsewhere, and the copies that units placed
    elsewhere need of its tensors. With ``keep`` the unit is placed.
    """
    num_buckets = account.used.shape[1]
    for bucket in range(num_buckets):
        account.extra[device, bucket] = instance.profile[unit, bucket]
    account.touched[device] = True
    undone = 0
    for position in range(instance.unit_ptr[unit], instance.unit_ptr[unit + 1]):
        task = instance.unit_task[position]
        for place in range(instance.input_ptr[task], instance.input_ptr[task + 1]):
            tensor = instance.input_tensor[place]
            other = instance.unit_of_task[instance.tensor_task[tensor]]
            if other != unit and device_of_unit[other] != -1 and device_of_unit[other] != device:
                undone = _copy(instance, account, device, tensor, instance.bucket[task], undone)
        for tensor in range(instance.tensor_ptr[task], instance.tensor_ptr[task + 1]):
            for place in range(instance.reader_ptr[tensor], instance.reader_ptr[tensor + 1]):
                reader = instance.reader[place]
                other = instance.unit_of_task[reader]
                if other != unit and device_of_unit[other] != -1 and device_of_unit[other] != device:
                    target = device_of_unit[other]
                    undone = _copy(instance, account, target, tensor, instance.bucket[reader], undone)
    worst = np.int64(-(2**62))
    account.added[0] = 0.0
    for other in range(account.touched.shape[0]):
        if account.touched[other]:
            for bucket in range(num_buckets):
                total = account.used[other, bucket] + account.extra[other, bucket]
                worst = max(worst, total - account.capacity_bytes[other])
                account.added[0] += account.extra[other, bucket]
                if keep:
                    account.used[other, bucket] = total
                account.extra[other, bucket] = 0
            account.touched[other] = False
    if keep:
        device_of_unit[unit] = device
        account.placed[0] += 1
    else:
        for row in range(undone - 1, -1, -1):
            account.copy_until[account.undo[row, 0], account.undo[row, 1]] = account.undo[row, 2]
    return worst


@kernel(inner=True, allocates=False)
def least_overflow(instance, account, device_of_unit, unit):
    best, least = -1, np.int64(2**62)
    for device in range(account.used.shape[0]):
        if not instance.allowed[unit, device]:
            continue
        overflow = charge(instance, account, device_of_unit, unit, device, False)
        if best == -1 or overflow < least:
            best, least = device, overflow
    return best
