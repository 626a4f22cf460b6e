# Run-time of HTC++.
_base_ = ['./coco_runtime.py']

# A checkpoint without the extra layer may start a network that has it: the layer changes nothing until it is trained
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook', new_parts=('neck.0.extra_layer.',))]
tta_model = dict(tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.5)))
