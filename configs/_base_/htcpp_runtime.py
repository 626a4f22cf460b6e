# Run-time of HTC++.
_base_ = ['./coco_runtime.py']

# A network that was trained without the extra layer may start one that has it: until it is trained it changes nothing
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook', new_parts=('neck.0.extra_layer.',))]
tta_model = dict(tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.5)))
