# Runtime settings of HTC++.
_base_ = ['./coco_runtime.py']

# A checkpoint without the extra layer may initialise a network that has it: untrained, the layer is the identity
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook', new_parts=('neck.0.extra_layer.',))]
tta_model = dict(tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.5)))
